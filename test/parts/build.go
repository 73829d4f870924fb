package parts

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// builder knows where the pins are and where programs go.
type builder struct{ source, cache string }

func ensure(ctx context.Context, log io.Writer, b builder, p Part) (string, error) {
	if path, ok := onPath(ctx, p); ok {
		return path, nil
	}
	key, err := b.key(ctx, p)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(b.cache, p.Name+"-"+key)
	path := filepath.Join(dir, p.Name)
	if built(path) {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("parts: %w", err)
	}
	unlock, err := lock(ctx, log, p.Name, filepath.Join(dir, ".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if built(path) { // by the run that held the lock
		return path, nil
	}
	return path, b.build(ctx, log, p, path)
}

// onPath reports whether PATH has the pinned version. Anything else there, an older release say, is passed over.
func onPath(ctx context.Context, p Part) (string, bool) {
	if len(p.VersionArgs) == 0 {
		return "", false
	}
	path, err := exec.LookPath(p.Name)
	if err != nil {
		return "", false
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, p.VersionArgs...).CombinedOutput()
	if err != nil {
		return "", false
	}
	for _, word := range strings.Fields(string(out)) {
		if word == p.Version {
			return path, true
		}
	}
	return "", false
}

func built(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// key names what a program is made of.
func (b builder) key(ctx context.Context, p Part) (string, error) {
	h := sha256.New()
	for _, name := range p.pins() {
		content, err := os.ReadFile(filepath.Join(b.source, p.Folder, name))
		if err != nil {
			return "", fmt.Errorf("parts: %s: %w", p.Name, err)
		}
		sum := sha256.Sum256(content)
		h.Write(sum[:])
	}
	if !p.Wheel {
		version, err := b.golang(ctx, p, "env", "GOVERSION", "GOOS", "GOARCH", "CGO_ENABLED")
		if err != nil {
			return "", err
		}
		h.Write(version)
	}
	h.Write([]byte(p.Package))
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

func (b builder) golang(ctx context.Context, p Part, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = filepath.Join(b.source, p.Folder)
	cgo := "CGO_ENABLED=0"
	if p.Cgo {
		cgo = "CGO_ENABLED=1"
	}
	cmd.Env = append(os.Environ(), cgo, "GOFLAGS=", "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("parts: %s: go %s: %w%s", p.Name, args[0], err, tail(stderr.String()))
	}
	return out, nil
}

func (b builder) build(ctx context.Context, log io.Writer, p Part, path string) error {
	if p.Cgo {
		if _, err := EnsureSystem(ctx, log, "gcc"); err != nil {
			return fmt.Errorf("parts: %s needs a C compiler: %w", p.Name, err)
		}
	}
	start := time.Now()
	say(log, "building %s %s …", p.Name, p.Version)
	partial := path + ".partial"
	defer func() { _ = os.Remove(partial) }() // gone already when the build succeeded
	if p.Wheel {
		if err := b.wheel(ctx, log, p, partial); err != nil {
			return err
		}
	} else if _, err := b.golang(ctx, p, "build", "-mod=readonly", "-trimpath", "-o", partial, p.Package); err != nil {
		return err
	}
	if err := os.Rename(partial, path); err != nil {
		return fmt.Errorf("parts: %s: %w", p.Name, err)
	}
	say(log, "built %s %s in %.0f s", p.Name, p.Version, time.Since(start).Seconds())
	return nil
}

// lock takes an exclusive lock on file, telling when somebody else holds it. The lock goes with the process, however it ends.
func lock(ctx context.Context, log io.Writer, name, file string) (func(), error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("parts: %s: lock: %w", name, err)
	}
	for told := false; ; told = true {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil // closing gives the lock back; nothing was written
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("parts: %s: lock %s: %w", name, file, err), f.Close())
		}
		if !told {
			say(log, "waiting for another run that builds %s …", name)
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("parts: %s: waiting for another run's build: %w", name, ctx.Err()), f.Close())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// ModuleDir returns the folder in the module cache that holds module at the version which folder's go.mod pins, downloading
// it when needed. Custom resource definitions are read from there.
func ModuleDir(ctx context.Context, folder, module string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	out, err := builder{source: root}.golang(ctx, Part{Name: module, Folder: folder}, "mod", "download", "-json", module)
	if err != nil {
		return "", err
	}
	var found struct{ Dir, Error string }
	if err := json.Unmarshal(out, &found); err != nil {
		return "", fmt.Errorf("parts: %s: go mod download: %w", module, err)
	}
	if found.Error != "" || found.Dir == "" {
		return "", fmt.Errorf("parts: %s: go mod download: no folder: %s", module, found.Error)
	}
	return found.Dir, nil
}

func say(log io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(log, format+"\n", args...) // progress for people; losing it loses nothing
}

// tail keeps the end of a tool's output, where the reason stands.
func tail(text string) string {
	const most = 2000
	text = strings.TrimSpace(text)
	if text == "" {
		return ""
	}
	if len(text) > most {
		text = "…" + text[len(text)-most:]
	}
	return "\n" + text
}
