package stage

import (
	"context"
	"fmt"
	"maps"
	"os"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/keelson-project/keelson/charts/images"
	"github.com/keelson-project/keelson/test/cluster/fleet"
	"github.com/keelson-project/keelson/test/cluster/mesh"
	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/parts"
	"github.com/keelson-project/keelson/workloadattestor/image/imagetest"
)

// Repositories of the images.
const (
	Workload = "team/workload" // signed by the release key
	Unsigned = "team/unsigned" // another file in it, and nobody's signature
	proxy    = "istio/proxyv2" // signed too: SPIRE's agent attests the proxy
	istiod   = "istio/pilot"
)

// pushImages makes every image and signs those that workloads are made of.
func (s *Stage) pushImages(ctx context.Context) error {
	if err := s.pushOwn(ctx); err != nil {
		return err
	}
	for repository, i := range map[string]struct {
		files      map[string]string
		entrypoint []string
	}{
		// As in SPIRE's own images.
		"spire-server": {map[string]string{"/opt/spire/bin/spire-server": s.parts["spire-server"]}, []string{"/opt/spire/bin/spire-server", "run"}},
		"spire-agent":  {map[string]string{"/opt/spire/bin/spire-agent": s.parts["spire-agent"]}, []string{"/opt/spire/bin/spire-agent", "run"}},
		Workload:       {map[string]string{"/workload": s.programs["test/e2e/workload"]}, []string{"/workload"}},
	} {
		files, err := fleet.Files(i.files)
		if err != nil {
			return err
		}
		if _, err := s.Push(ctx, repository, node.Image{Files: files, Entrypoint: i.entrypoint}); err != nil {
			return err
		}
	}
	if err := s.pushMesh(ctx); err != nil {
		return err
	}
	var err error
	if s.release, s.public, err = imagetest.NewKey(); err != nil {
		return err
	}
	for _, repository := range []string{Workload, proxy, "keelson-policy-sync"} {
		if err := s.Sign(ctx, s.Image(repository)); err != nil {
			return err
		}
	}
	_, err = s.PushChanged(ctx, Unsigned, map[string][]byte{"/changed": []byte("this file is not in the released image\n")})
	return err
}

// pushOwn makes Keelson's images as `make images` does, for this computer alone and out of programs that the cache may have.
func (s *Stage) pushOwn(ctx context.Context) error {
	root, err := parts.ModuleRoot()
	if err != nil {
		return err
	}
	version, err := images.Version(root)
	if err != nil {
		return err
	}
	for _, i := range images.All() {
		image, err := i.Build(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}, version, s.programs)
		if err != nil {
			return err
		}
		if _, err := s.PushImage(ctx, i.Name, image); err != nil {
			return err
		}
	}
	return nil
}

func (s *Stage) pushMesh(ctx context.Context) error {
	pilot, err := mesh.IstiodImage(ctx, s.options.Log)
	if err != nil {
		return err
	}
	sidecar, err := mesh.ProxyImage(ctx, s.options.Log)
	if err != nil {
		return err
	}
	if _, err := s.Push(ctx, istiod, pilot); err != nil {
		return err
	}
	_, err = s.Push(ctx, proxy, sidecar)
	return err
}

// PushChanged pushes the workload's image with some files changed or added.
func (s *Stage) PushChanged(ctx context.Context, repository string, changed map[string][]byte) (node.Pushed, error) {
	program, err := os.ReadFile(s.programs["test/e2e/workload"])
	if err != nil {
		return node.Pushed{}, fmt.Errorf("stage: %w", err)
	}
	files := map[string][]byte{"/workload": program}
	maps.Copy(files, changed)
	return s.Push(ctx, repository, node.Image{Files: files, Entrypoint: []string{"/workload"}})
}

// PushOneByteOff pushes the workload's image with one byte more at the end of its program, which runs as before.
func (s *Stage) PushOneByteOff(ctx context.Context, repository string) (node.Pushed, error) {
	program, err := os.ReadFile(s.programs["test/e2e/workload"])
	if err != nil {
		return node.Pushed{}, fmt.Errorf("stage: %w", err)
	}
	return s.PushChanged(ctx, repository, map[string][]byte{"/workload": append(program, 0)})
}

// Sign signs an image with the release key.
func (s *Stage) Sign(ctx context.Context, p node.Pushed) error {
	return imagetest.Sign(ctx, p.Repository, p.Manifest.String(), s.release, name.Insecure)
}
