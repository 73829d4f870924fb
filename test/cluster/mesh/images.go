package mesh

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/parts"
)

// Paths inside the images. Istio's own defaults, so that neither the mesh configuration nor a pod has to name them.
const (
	discoveryPath = "/usr/local/bin/pilot-discovery"
	agentPath     = "/usr/local/bin/pilot-agent"
	envoyPath     = "/usr/local/bin/envoy"
	templatePath  = "/var/lib/istio/envoy/envoy_bootstrap_tmpl.json"
)

// IstiodImage returns what istiod's image holds: one static program.
func IstiodImage(ctx context.Context, log io.Writer) (node.Image, error) {
	paths, err := parts.Ensure(ctx, log, "pilot-discovery")
	if err != nil {
		return node.Image{}, err
	}
	files, err := read(map[string]string{discoveryPath: paths["pilot-discovery"]})
	if err != nil {
		return node.Image{}, err
	}
	return node.Image{Files: files, Entrypoint: []string{discoveryPath}}, nil
}

// ProxyImage returns what the sidecar's image holds: pilot-agent, Envoy with the C library that it needs, and the template of
// Envoy's bootstrap. There is nothing in it to change a pod's network with: the node's CNI plugin does that.
func ProxyImage(ctx context.Context, log io.Writer) (node.Image, error) {
	paths, err := parts.Ensure(ctx, log, "pilot-agent", "envoy")
	if err != nil {
		return node.Image{}, err
	}
	module, err := parts.ModuleDir(ctx, "istio", "istio.io/istio")
	if err != nil {
		return node.Image{}, err
	}
	from := map[string]string{
		agentPath: paths["pilot-agent"], envoyPath: paths["envoy"],
		templatePath: filepath.Join(module, "tools", "packaging", "common", "envoy_bootstrap.json"),
	}
	libraries, err := libraries(ctx, paths["envoy"])
	if err != nil {
		return node.Image{}, err
	}
	for _, library := range libraries {
		from[library] = library
	}
	files, err := read(from)
	if err != nil {
		return node.Image{}, err
	}
	return node.Image{Files: files, Entrypoint: []string{agentPath}}, nil
}

// read reads the files of an image: path in the image to path on this machine.
func read(from map[string]string) (map[string][]byte, error) {
	files := make(map[string][]byte, len(from))
	for in, on := range from {
		content, err := os.ReadFile(on)
		if err != nil {
			return nil, fmt.Errorf("mesh: image: %w", err)
		}
		files[in] = content
	}
	return files, nil
}

// libraries are the files that a dynamic program needs, at the paths where its loader looks for them: the loader, which the
// program names itself, and what the loader says it would load. The loader searches the same folders in a container, since
// those are built into it.
func libraries(ctx context.Context, program string) ([]string, error) {
	loader, err := interpreter(program)
	if err != nil {
		return nil, err
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, loader, "--list", program)
	cmd.Env = []string{} // LD_LIBRARY_PATH and LD_PRELOAD are this machine's affair
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("mesh: libraries of %s: %w: %s", filepath.Base(program), err, strings.TrimSpace(stderr.String()))
	}
	needed, err := listed(string(out))
	if err != nil {
		return nil, fmt.Errorf("mesh: libraries of %s: %w", filepath.Base(program), err)
	}
	return append(needed, loader), nil
}

// interpreter reads the path of the dynamic loader out of a program (the segment PT_INTERP).
func interpreter(program string) (loader string, err error) {
	f, err := elf.Open(program)
	if err != nil {
		return "", fmt.Errorf("mesh: %s: %w", filepath.Base(program), err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for _, segment := range f.Progs {
		if segment.Type != elf.PT_INTERP {
			continue
		}
		content, err := io.ReadAll(segment.Open())
		if err != nil {
			return "", fmt.Errorf("mesh: %s: %w", filepath.Base(program), err)
		}
		return strings.TrimRight(string(content), "\x00"), nil
	}
	return "", fmt.Errorf("mesh: %s is static, which Envoy is not: was the part replaced?", filepath.Base(program))
}

// listed reads what ld.so(8) prints for --list: a line per library, "name => path (address)"; the kernel's own and the loader
// stand without an arrow.
func listed(out string) ([]string, error) {
	var found []string
	for line := range strings.Lines(out) {
		name, rest, arrow := strings.Cut(strings.TrimSpace(line), " => ")
		if !arrow {
			continue
		}
		file, _, _ := strings.Cut(rest, " (")
		if !path.IsAbs(file) {
			return nil, fmt.Errorf("%s is missing on this machine (%q)", name, rest)
		}
		if !path.IsAbs(name) { // the loader, under another name than the program's
			found = append(found, file)
		}
	}
	return found, nil
}
