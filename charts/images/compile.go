package images

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Platforms are those that images are made for.
func Platforms() []v1.Platform {
	return []v1.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64"}}
}

// Compile builds programs of the checkout at root for a platform into dir and returns their paths by package: static, without
// a path of this machine, a time or a commit in them, and whatever the environment would say about how.
func Compile(ctx context.Context, root, dir string, p v1.Platform, packages ...string) (map[string]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // programs, which are for everybody
		return nil, fmt.Errorf("images: %w", err)
	}
	out := make(map[string]string, len(packages))
	args := []string{"build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", dir + string(filepath.Separator)}
	for _, pkg := range packages {
		args = append(args, "./"+pkg)
		out[pkg] = filepath.Join(dir, filepath.Base(pkg))
	}
	cmd := exec.CommandContext(ctx, "go", args...) // #nosec G204 -- packages of this module
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+p.OS, "GOARCH="+p.Architecture, "GOFLAGS=", "GOWORK=off", "GOEXPERIMENT=",
		"GOAMD64=v1", "GOARM64=v8.0", "GOFIPS140=off")
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("images: go build for %s: %w\n%s", p, err, text)
	}
	return out, nil
}
