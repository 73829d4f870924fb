package images

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// rootsPath is where Go looks for CA certificates first (crypto/x509, root_linux.go). An operator with a CA of his own mounts
// a file of his there.
const rootsPath = "/etc/ssl/certs/ca-certificates.crt"

// machines are what an ELF file says of the architectures that images are made for.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// layer makes the image's one layer: files and folders owned by root, which the image's user cannot write, without a time.
func (i Image) layer(p v1.Platform, programs map[string]string) (v1.Layer, error) {
	files := map[string][]byte{}
	for to, pkg := range i.Programs {
		from, ok := programs[pkg]
		if !ok {
			return nil, fmt.Errorf("nobody has built %s", pkg)
		}
		content, err := os.ReadFile(from)
		if err != nil {
			return nil, err
		}
		if err := runsAlone(content, p); err != nil {
			return nil, fmt.Errorf("%s: %w", from, err)
		}
		files[to] = content
	}
	modes := map[string]int64{rootsPath: 0o644}
	if i.Roots {
		files[rootsPath] = Roots()
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, name := range folders(files) {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name[1:] + "/", Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		mode := int64(0o755)
		if m, ok := modes[name]; ok {
			mode = m
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name[1:], Mode: mode, Size: int64(len(files[name]))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(files[name]); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithCompressedCaching, tarball.WithMediaType(types.OCILayer))
}

// folders are the folders above the files, each before what is in it.
func folders(files map[string][]byte) []string {
	var out []string
	for name := range files {
		for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
			out = append(out, dir)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// runsAlone refuses what does not run where there is no loader and no library, or not on this architecture.
func runsAlone(program []byte, p v1.Platform) error {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return fmt.Errorf("it is no program of Linux: %w", err)
	}
	if machine, known := machines[p.Architecture]; p.OS != "linux" || !known || f.Machine != machine {
		return fmt.Errorf("it is a program for %s, the image one for %s", f.Machine, p)
	}
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return errors.New("it needs a loader, which the image does not have: build it with CGO_ENABLED=0")
	}
	return nil
}

// Roots are the CA certificates that Mozilla trusts without a condition, as PEM, from golang.org/x/crypto/x509roots, which go.sum
// pins. Those that it trusts for certificates up to a date only are left out: a file cannot say so.
func Roots() []byte {
	var out bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}))
		}
	}
	return out.Bytes()
}
