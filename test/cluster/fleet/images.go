package fleet

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/test/parts"
)

// Push pushes an image; Image finds it again by its repository.
func (f *Fleet) Push(ctx context.Context, repository string, i node.Image) (node.Pushed, error) {
	p, err := f.Registry.Push(ctx, repository, i)
	return f.keep(repository, p, err)
}

// PushImage is Push for an image that was made elsewhere.
func (f *Fleet) PushImage(ctx context.Context, repository string, i v1.Image) (node.Pushed, error) {
	p, err := f.Registry.PushImage(ctx, repository, i)
	return f.keep(repository, p, err)
}

func (f *Fleet) keep(repository string, p node.Pushed, err error) (node.Pushed, error) {
	if err != nil {
		return p, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.images[repository] = p
	return p, nil
}

// Image is what was pushed to a repository; it panics when nothing was, which is a mistake of the caller's.
func (f *Fleet) Image(repository string) node.Pushed {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, ok := f.images[repository]
	if !ok {
		panic("fleet: nothing was pushed to " + repository)
	}
	return p
}

// pushPause makes the sandbox's image out of the workload's program, which can wait.
func (f *Fleet) pushPause(ctx context.Context) error {
	const workload = "test/demo/workload"
	paths, err := parts.Commands(ctx, f.Log, workload)
	if err != nil {
		return err
	}
	files, err := Files(map[string]string{"/workload": paths[workload]})
	if err != nil {
		return err
	}
	f.pause, err = f.Push(ctx, "pause", node.Image{Files: files, Entrypoint: []string{"/workload"}, Cmd: []string{"pause"}})
	return err
}

// Files reads programs of this computer for an image, by their paths in it, and with each the shared libraries that it needs.
func Files(programs map[string]string) (map[string][]byte, error) {
	files := map[string][]byte{}
	for to, from := range programs {
		content, err := os.ReadFile(from)
		if err != nil {
			return nil, fmt.Errorf("fleet: image: %w", err)
		}
		files[to] = content
		libraries, err := libraries(from, content)
		if err != nil {
			return nil, err
		}
		for _, path := range libraries {
			if files[path], err = os.ReadFile(path); err != nil {
				return nil, fmt.Errorf("fleet: image: %w", err)
			}
		}
	}
	return files, nil
}

// libraries asks a program's own loader (PT_INTERP) what it would load; a static program has none.
func libraries(path string, content []byte) ([]string, error) {
	program, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("fleet: image: %s: %w", path, err)
	}
	var loader string
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP {
			text := make([]byte, p.Filesz)
			if _, err := p.ReadAt(text, 0); err != nil {
				return nil, fmt.Errorf("fleet: image: %s: %w", path, err)
			}
			loader = strings.TrimRight(string(text), "\x00")
		}
	}
	if loader == "" {
		return nil, nil
	}
	out, err := exec.Command(loader, "--list", path).Output() // #nosec G204 -- the loader of a program that was built here
	if err != nil {
		return nil, fmt.Errorf("fleet: image: %s --list %s: %w", loader, path, err)
	}
	found := []string{loader}
	for line := range strings.Lines(string(out)) { // "libc.so.6 => /lib/… (0x…)"
		if _, to, ok := strings.Cut(line, " => "); ok {
			found = append(found, strings.Fields(to)[0])
		}
	}
	return found, nil
}
