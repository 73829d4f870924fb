package parts

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Commands builds this project's own programs, by the folders of their packages ("cmd/keelson", "test/demo/workload"), as they
// stand in the checkout, and returns their paths by folder. They are static, so that containers can run them. Go leaves a
// program that is up to date alone, so the folder that they are built into is kept, one for each checkout.
func Commands(ctx context.Context, log io.Writer, folders ...string) (map[string]string, error) {
	return commands(ctx, log, "", false, folders)
}

// CommandOf is Commands for one program of another module of this checkout, by the module's folder ("test/charts") and the
// program's within it ("cmd/helmctl").
func CommandOf(ctx context.Context, log io.Writer, module, folder string) (string, error) {
	paths, err := commands(ctx, log, module, false, []string{folder})
	return paths[folder], err
}

// CgoCommands is Commands for programs that need a C compiler, such as the TPM simulator; these are not static.
func CgoCommands(ctx context.Context, log io.Writer, folders ...string) (map[string]string, error) {
	return commands(ctx, log, "", true, folders)
}

func commands(ctx context.Context, log io.Writer, module string, cgo bool, folders []string) (map[string]string, error) {
	root, err := ModuleRoot()
	if err != nil {
		return nil, err
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(root))
	dir := filepath.Join(cache, "own-"+hex.EncodeToString(sum[:8]))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("parts: %w", err)
	}
	unlock, err := lock(ctx, log, "this project's programs", filepath.Join(dir, ".lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	begun := time.Now()
	b := builder{source: filepath.Join(root, module)}
	paths := make(map[string]string, len(folders))
	built := make(chan error, 1)
	go func() {
		for _, folder := range folders {
			path := filepath.Join(dir, strings.ReplaceAll(folder, "/", "-")) // folders of one name in different places are different programs
			if _, err := b.golang(ctx, Part{Name: folder, Cgo: cgo}, "build", "-trimpath", "-o", path, "./"+folder); err != nil {
				built <- err
				return
			}
			paths[folder] = path
		}
		built <- nil
	}()
	// A build that takes long says so while it does; here, for the log is the caller's, who may use it as soon as this returns.
	select {
	case err = <-built:
	case <-time.After(3 * time.Second):
		say(log, "building this project's programs …")
		err = <-built
	}
	if err != nil {
		return nil, err
	}
	if took := time.Since(begun); took > 3*time.Second {
		say(log, "built this project's programs in %.0f s", took.Seconds())
	}
	return paths, nil
}
