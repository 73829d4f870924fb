package vmboot

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/keelson-project/keelson/test/parts"
)

// ErrUnavailable says that this machine cannot have what a boot needs: it has another architecture, or the packages are out of
// reach. Nothing else is a reason to do without a boot.
var ErrUnavailable = errors.New("vmboot: unavailable here")

// kernelPackage is Debian's package that depends on the current kernel without drivers for hardware.
const kernelPackage = "linux-image-cloud-amd64"

// kernel is an unpacked package; nothing of it is installed.
type kernel struct {
	image   []byte            // vmlinuz
	modules map[string]string // path by name, as in "virtio_blk"
}

// findKernel downloads and unpacks the kernel once.
func findKernel(ctx context.Context, log io.Writer) (*kernel, error) {
	name, err := kernelName(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := unpacked(ctx, log, name)
	if err != nil {
		return nil, err
	}
	return readKernel(dir)
}

// unpacked is the folder of a package's files, which is downloaded once and installed nowhere.
func unpacked(ctx context.Context, log io.Writer, name string) (string, error) {
	cache, err := parts.CacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, name)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return dir, unpack(ctx, log, name, dir)
	}
	return dir, nil
}

var dependsOnImage = regexp.MustCompile(`(?m)^\s*Depends: (linux-image-\S+-cloud-amd64)$`)

// kernelName is the package that Debian's lists name as the current kernel. A fresh machine has no lists.
func kernelName(ctx context.Context) (string, error) {
	out, err := tool(ctx, "", "apt-cache", "depends", kernelPackage)
	if err != nil {
		if _, updateErr := tool(ctx, "", "apt-get", "update", "-qq"); updateErr != nil {
			return "", fmt.Errorf("%w: the kernel's package is not known: %w", ErrUnavailable, errors.Join(err, updateErr))
		}
		if out, err = tool(ctx, "", "apt-cache", "depends", kernelPackage); err != nil {
			return "", fmt.Errorf("%w: the kernel's package is not known: %w", ErrUnavailable, err)
		}
	}
	found := dependsOnImage.FindSubmatch(out)
	if found == nil {
		return "", fmt.Errorf("vmboot: %s depends on no kernel: %.200q", kernelPackage, out)
	}
	return string(found[1]), nil
}

// unpack makes dir whole or not at all.
func unpack(ctx context.Context, log io.Writer, name, dir string) (err error) {
	_, _ = fmt.Fprintf(log, "downloading %s …\n", name) // progress for people
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("vmboot: %w", err)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".kernel-")
	if err != nil {
		return fmt.Errorf("vmboot: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	if err := download(ctx, tmp, name); err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(tmp, name+"_*.deb"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("vmboot: apt-get download %s brought %v: %w", name, found, err)
	}
	if _, err := tool(ctx, tmp, "dpkg", "-x", found[0], "whole"); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(tmp, "whole"), dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("vmboot: %w", err)
	}
	return nil
}

// download brings a package into dir. Lists that are older than the mirror's packages name files that are gone, so a failure is one only
// with fresh lists.
func download(ctx context.Context, dir, name string) error {
	_, err := tool(ctx, dir, "apt-get", "download", "-qq", name)
	if err == nil {
		return nil
	}
	if _, updateErr := tool(ctx, dir, "apt-get", "update", "-qq"); updateErr != nil {
		return fmt.Errorf("%w: %s cannot be downloaded: %w", ErrUnavailable, name, errors.Join(err, updateErr))
	}
	if _, err := tool(ctx, dir, "apt-get", "download", "-qq", name); err != nil {
		return fmt.Errorf("%w: %s cannot be downloaded: %w", ErrUnavailable, name, err)
	}
	return nil
}

func readKernel(dir string) (*kernel, error) {
	k := &kernel{modules: map[string]string{}}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		switch name := filepath.Base(path); {
		case err != nil || e.IsDir():
			return err
		case strings.HasPrefix(name, "vmlinuz-"):
			k.image, err = os.ReadFile(path)
			return err
		case strings.HasSuffix(name, ".ko"):
			// The kernel takes "-" and "_" in the name of a module for the same.
			k.modules[strings.ReplaceAll(strings.TrimSuffix(name, ".ko"), "-", "_")] = path
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("vmboot: kernel: %w", err)
	}
	if k.image == nil || len(k.modules) == 0 {
		return nil, fmt.Errorf("vmboot: %s holds no kernel with plain modules; remove the folder to have it unpacked again", dir)
	}
	return k, nil
}

// load lists modules and all that they depend on, in the order in which they have to be loaded.
func (k *kernel) load(names ...string) ([]string, error) {
	var order []string
	for _, name := range names {
		path, ok := k.modules[name]
		if !ok {
			return nil, fmt.Errorf("vmboot: the kernel has no module %s", name)
		}
		needs, err := dependencies(path)
		if err != nil {
			return nil, err
		}
		before, err := k.load(needs...)
		if err != nil {
			return nil, err
		}
		for _, m := range append(before, name) {
			if !slices.Contains(order, m) {
				order = append(order, m)
			}
		}
	}
	return order, nil
}

// dependencies reads what a module needs from the module itself: depmod, which writes it down for modprobe, has not run.
func dependencies(path string) (names []string, err error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("vmboot: module %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("vmboot: module %s has no .modinfo", path)
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("vmboot: module %s: %w", path, err)
	}
	for _, field := range bytes.Split(info, []byte{0}) {
		if list, ok := bytes.CutPrefix(field, []byte("depends=")); ok && len(list) > 0 {
			names = append(names, strings.Split(strings.ReplaceAll(string(list), "-", "_"), ",")...)
		}
	}
	return names, nil
}

// tool runs a program to its end and returns its output; the error holds what it said.
func tool(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("vmboot: %s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}
