package fleet

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/parts"
)

// csiImages are the images that a manifest of the SPIFFE CSI driver names, by the repositories that stand in for them here.
var csiImages = map[string]string{
	csiDriver: "ghcr.io/spiffe/spiffe-csi-driver:0.2.6",
	registrar: "registry.k8s.io/sig-storage/csi-node-driver-registrar:v2.13.0",
}

const (
	csiDriver = "spiffe-csi-driver"
	registrar = "csi-node-driver-registrar"
)

// registrarProgram is the folder of the program that stands in for node-driver-registrar.
const registrarProgram = "test/cluster/fleet/cmd/registrar"

// InstallCSI installs the SPIFFE CSI driver from a manifest that names the images of its release: the driver is that release, built
// here, and what registers it with the kubelets is a program of this package. Nodes have the driver once its DaemonSet's pods run.
func (f *Fleet) InstallCSI(ctx context.Context, manifest string) error {
	own, err := parts.Commands(ctx, f.Log, registrarProgram)
	if err != nil {
		return err
	}
	built, err := parts.Ensure(ctx, f.Log, csiDriver)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(manifest)
	if err != nil {
		return fmt.Errorf("fleet: %w", err)
	}
	text := string(content)
	for repository, program := range map[string]string{csiDriver: built[csiDriver], registrar: own[registrarProgram]} {
		if !strings.Contains(text, csiImages[repository]) {
			return fmt.Errorf("fleet: %s names no image %s", manifest, csiImages[repository])
		}
		path := "/" + repository
		files, err := Files(map[string]string{path: program})
		if err != nil {
			return err
		}
		pushed, err := f.Push(ctx, repository, node.Image{Files: files, Entrypoint: []string{path}})
		if err != nil {
			return err
		}
		text = strings.ReplaceAll(text, csiImages[repository], pushed.Reference())
	}
	return f.Cluster.Apply(ctx, []byte(text))
}
