// Package images makes the container images that charts/keelson and SPIRE's pods name, from this source and without a
// container engine: static programs, one layer, nothing else but public CA certificates where they are needed. The same source
// and the same Go version give the same bytes, on any machine.
//
//	programs, err := images.Compile(ctx, root, dir, platform)
//	image, err := images.All()[0].Build(platform, version, programs)
//	err = images.WriteLayout("out/images/keelson-node", version, built)
//	pushed, err := images.Push(ctx, "out/images/keelson-node", "registry.example.org/keelson/keelson-node")
//
// It knows nothing of registries' credentials but where Docker keeps them, and nothing of signatures: what was pushed is
// signed by whoever vouches for it.
package images

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"go.yaml.in/yaml/v3"
)

// User is who an image's program runs as where nobody says otherwise: nobody's number on any node. keelson-node is started as
// root by its DaemonSet, since Kubernetes gives capabilities to no other user.
const User = "65532:65532"

// Image is one image: its name in a registry and what is in it.
type Image struct {
	// Name is the repository's last part, as the chart's values have it.
	Name string
	// Title is a sentence for people.
	Title string
	// Entrypoint is the path of the program that the image starts.
	Entrypoint string
	// Programs are the packages of this module that are in it ("cmd/keelson"), by the program's path in the image.
	Programs map[string]string
	// Roots says that its program asks servers whose certificates public CAs have signed, such as image registries.
	Roots bool
}

// All returns the images, ordered by name.
func All() []Image {
	return []Image{
		{
			Name: "keelson-node", Title: "Keelson's node component: cuts open connections of revoked addresses", Entrypoint: "/keelson-node",
			Programs: map[string]string{"/keelson-node": "cmd/keelson-node"},
		},
		{
			Name: "keelson-plugins", Title: "Keelson's SPIRE plugins, and the program that installs them into a volume", Entrypoint: "/keelson",
			// SPIRE starts the plugins in its own container, with the certificates that are there.
			Programs: map[string]string{
				"/keelson":                             "cmd/keelson",
				"/plugins/keelson-nodeattestor-agent":  "cmd/keelson-nodeattestor-agent",
				"/plugins/keelson-nodeattestor-server": "cmd/keelson-nodeattestor-server",
				"/plugins/keelson-workloadattestor":    "cmd/keelson-workloadattestor",
			},
		},
		{
			Name: "keelson-policy-sync", Title: "Keelson's controller: verdicts to labels, policies and SPIRE entries", Entrypoint: "/keelson-policy-sync",
			// keelson looks at the cluster with this pod's own configuration, SPIRE socket and registries.
			Programs: map[string]string{"/keelson-policy-sync": "cmd/keelson-policy-sync", "/keelson": "cmd/keelson"}, Roots: true,
		},
	}
}

// Packages are the packages that all images together are made of.
func Packages() []string {
	var out []string
	for _, i := range All() {
		for _, p := range i.Programs {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Version is the version that the chart of a checkout asks for when its values name no tag: its appVersion.
func Version(root string) (string, error) {
	content, err := os.ReadFile(filepath.Join(root, "charts", "keelson", "Chart.yaml"))
	if err != nil {
		return "", fmt.Errorf("images: %w", err)
	}
	var chart struct {
		AppVersion string `yaml:"appVersion"`
	}
	if err := yaml.Unmarshal(content, &chart); err != nil {
		return "", fmt.Errorf("images: Chart.yaml: %w", err)
	}
	if chart.AppVersion == "" {
		return "", errors.New("images: Chart.yaml has no appVersion")
	}
	return chart.AppVersion, nil
}

// Build makes the image for one platform. programs are paths on this machine by package, as Compile returns them; one that
// could not run in an image that holds nothing else is refused.
func (i Image) Build(p v1.Platform, version string, programs map[string]string) (v1.Image, error) {
	layer, err := i.layer(p, programs)
	if err != nil {
		return nil, fmt.Errorf("images: %s: %w", i.Name, err)
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.AppendLayers(base, layer)
	if err != nil {
		return nil, fmt.Errorf("images: %s: %w", i.Name, err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("images: %s: %w", i.Name, err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Variant = p.OS, p.Architecture, p.Variant
	config.Created = v1.Time{Time: time.Unix(0, 0).UTC()} // no build differs from another by when it was made
	config.Config = v1.Config{Entrypoint: []string{i.Entrypoint}, User: User, WorkingDir: "/", Labels: map[string]string{
		"org.opencontainers.image.title": i.Name, "org.opencontainers.image.description": i.Title,
		"org.opencontainers.image.version": version, "org.opencontainers.image.licenses": "Apache-2.0",
		"org.opencontainers.image.source": "https://github.com/keelson-project/keelson",
	}}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return nil, fmt.Errorf("images: %s: %w", i.Name, err)
	}
	return image, nil
}
