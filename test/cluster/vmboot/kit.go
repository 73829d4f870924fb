package vmboot

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/keelson-project/keelson/test/parts"
)

// DefaultCommandLine is the kernel's command line. On a ramfs, unlike on a tmpfs, IMA's policy "tcb" measures what the guest runs.
const DefaultCommandLine = "console=ttyS0 quiet panic=-1 rootfstype=ramfs ima_policy=tcb ima_hash=sha256"

// Where the tests' own guest program, and the attestor plugin, are built from.
const (
	collectCommand = "test/cluster/vmboot/collect"
	pluginCommand  = "cmd/keelson-nodeattestor-agent"
)

// Kit is what images and machines are made of. Gather makes one.
type Kit struct {
	system   map[string]string // paths of programs and firmware
	programs string            // the disk that holds the guest's
	kernel   *kernel
	base     []byte // initrd
}

// Gather finds, installs or builds everything: QEMU, firmware, stub, kernel, SPIRE's agent, the attestor plugin. The error is
// ErrUnavailable where this machine cannot have it. dir is for what machines share.
func Gather(ctx context.Context, log io.Writer, dir string) (*Kit, error) {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return nil, fmt.Errorf("%w: the guest is linux/amd64, and runs programs of this machine, which is %s/%s", ErrUnavailable, runtime.GOOS, runtime.GOARCH)
	}
	k := &Kit{}
	var err error
	k.system, err = parts.EnsureSystem(ctx, log, "qemu", "ovmf", "systemd-stub", "swtpm", "swtpm_setup", "busybox", "mtools", "objcopy")
	if missing := (*parts.MissingError)(nil); errors.As(err, &missing) {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	} else if err != nil {
		return nil, err
	}
	if err := static(k.system["busybox"]); err != nil {
		return nil, err
	}
	if k.kernel, err = findKernel(ctx, log); err != nil {
		return nil, err
	}
	if k.base, err = k.initrd(); err != nil {
		return nil, err
	}
	k.programs = filepath.Join(dir, "programs.img")
	return k, k.writePrograms(ctx, log, dir)
}

// writePrograms makes the guest's second disk: a tar archive of what it runs.
func (k *Kit) writePrograms(ctx context.Context, log io.Writer, dir string) error {
	spire, err := parts.Ensure(ctx, log, "spire-agent")
	if err != nil {
		return err
	}
	own, err := parts.Commands(ctx, log, collectCommand, pluginCommand)
	if err != nil {
		return err
	}
	files := map[string][]byte{}
	for name, path := range map[string]string{
		"spire-agent": spire["spire-agent"], filepath.Base(pluginCommand): own[pluginCommand], filepath.Base(collectCommand): own[collectCommand],
	} {
		// Without what only debuggers read, which is half of it: the guest's kernel hashes it all.
		out := filepath.Join(dir, "stripped")
		if _, err := tool(ctx, dir, k.system["objcopy"], "--strip-all", path, out); err != nil {
			return err
		}
		if files[name], err = os.ReadFile(out); err != nil {
			return fmt.Errorf("vmboot: %w", err)
		}
	}
	disk, err := tarOf(0o755, files)
	if err != nil {
		return err
	}
	if err := os.WriteFile(k.programs, disk, 0o600); err != nil {
		return fmt.Errorf("vmboot: %w", err)
	}
	return nil
}

// tarOf is a disk for the guest, which reads it without a file system.
func tarOf(mode int64, files map[string][]byte) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(files[name]))}); err != nil {
			return nil, fmt.Errorf("vmboot: disk: %w", err)
		}
		if _, err := w.Write(files[name]); err != nil {
			return nil, fmt.Errorf("vmboot: disk: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("vmboot: disk: %w", err)
	}
	return b.Bytes(), nil
}

// static refuses a program that needs libraries, which the guest has not.
func static(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("vmboot: %s: %w", path, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			err = fmt.Errorf("vmboot: %s is not static; install busybox-static", path)
		}
	}
	return errors.Join(err, f.Close())
}

// Changes are what differs from the golden image; the zero value is the golden image.
type Changes struct {
	// CommandLine is added to DefaultCommandLine.
	CommandLine string
	// Files are added to the initrd: content by path ("etc/motd").
	Files map[string]string
	// Kernel is appended to the kernel's file. The kernel boots all the same: an EFI image's sections say what is loaded.
	Kernel []byte
}

// Image is a disk that firmware boots from: an EFI system partition with a unified kernel image.
type Image struct {
	// KernelSHA256 and InitrdSHA256 are the files' digests, which stub and kernel measure.
	KernelSHA256, InitrdSHA256 [sha256.Size]byte

	path string
}

// Build makes an image in dir.
func (k *Kit) Build(ctx context.Context, dir string, c Changes) (*Image, error) {
	sections := map[string][]byte{
		"osrel": []byte("ID=keelson-test\nNAME=\"Keelson test guest\"\n"), "cmdline": []byte(DefaultCommandLine),
		"linux": append(k.kernel.image[:len(k.kernel.image):len(k.kernel.image)], c.Kernel...), "initrd": k.base,
	}
	if c.CommandLine != "" {
		sections["cmdline"] = []byte(DefaultCommandLine + " " + c.CommandLine)
	}
	if len(c.Files) > 0 {
		more := map[string]file{}
		for name, content := range c.Files {
			more[name] = file{mode: modeFile, content: []byte(content)}
		}
		// The kernel unpacks one archive after the other.
		sections["initrd"] = append(k.base[:len(k.base):len(k.base)], archive(more)...)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("vmboot: image: %w", err)
	}
	// Where systemd-stub's documentation puts the sections (systemd 252, systemd-stub(7)).
	args := []string{}
	for _, s := range [][2]string{{"osrel", "0x20000"}, {"cmdline", "0x30000"}, {"linux", "0x2000000"}, {"initrd", "0x3000000"}} {
		name, address := s[0], s[1]
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, sections[name], 0o600); err != nil {
			return nil, fmt.Errorf("vmboot: image: %w", err)
		}
		args = append(args, "--add-section", "."+name+"="+path, "--change-section-vma", "."+name+"="+address)
	}
	unified := filepath.Join(dir, "unified.efi")
	if _, err := tool(ctx, dir, k.system["objcopy"], append(args, k.system["systemd-stub"], unified)...); err != nil {
		return nil, err
	}
	disk, err := k.partition(ctx, dir, unified)
	return &Image{sha256.Sum256(sections["linux"]), sha256.Sum256(sections["initrd"]), disk}, err
}

// partition puts the unified kernel image where firmware looks for the first thing to start.
func (k *Kit) partition(ctx context.Context, dir, unified string) (string, error) {
	info, err := os.Stat(unified)
	if err != nil {
		return "", fmt.Errorf("vmboot: image: %w", err)
	}
	disk := filepath.Join(dir, "boot.img")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		return "", fmt.Errorf("vmboot: image: %w", err)
	}
	const room = 32 << 20 // for the file system's own
	if err := os.Truncate(disk, (info.Size()+room)&^(1<<20-1)); err != nil {
		return "", fmt.Errorf("vmboot: image: %w", err)
	}
	for _, args := range [][]string{
		{"mformat", "-i", disk, "::"},
		{"mmd", "-i", disk, "::/EFI", "::/EFI/BOOT"},
		{"mcopy", "-i", disk, unified, "::/EFI/BOOT/BOOTX64.EFI"},
	} {
		if _, err := tool(ctx, dir, k.system["mtools"], append([]string{"-c"}, args...)...); err != nil {
			return "", err
		}
	}
	return disk, nil
}
