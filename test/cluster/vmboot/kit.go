package vmboot

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/keelson-project/keelson/test/parts"
)

// DefaultCommandLine is the kernel's command line. On a ramfs, unlike on a tmpfs, IMA's policy "tcb" measures what the guest runs. On a busy
// host the kernel's test of the emulated timer may fail.
const DefaultCommandLine = "console=ttyS0 quiet panic=-1 no_timer_check rootfstype=ramfs ima_policy=tcb ima_hash=sha256"

// Where the tests' own guest program, and the attestor plugin, are built from.
const (
	collectCommand = "test/cluster/vmboot/collect"
	podCommand     = "test/cluster/vmboot/pod"
	pluginCommand  = "cmd/keelson-nodeattestor-agent"
)

// Kit is what images and machines are made of. Gather makes one.
type Kit struct {
	system map[string]string // paths of programs and firmware
	dir    string            // for what machines share
	log    io.Writer
	kernel *kernel
	base   []byte // initrd
	shim   string // folder of Debian's package
	grub   string // the same
}

// Gather finds, installs or builds everything: QEMU, firmware, stub, kernel, SPIRE's agent, the attestor plugin. The error is
// ErrUnavailable where this machine cannot have it. dir is for what machines share.
func Gather(ctx context.Context, log io.Writer, dir string) (*Kit, error) {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return nil, fmt.Errorf("%w: the guest is linux/amd64, and runs programs of this machine, which is %s/%s",
			ErrUnavailable, runtime.GOOS, runtime.GOARCH)
	}
	k := &Kit{dir: dir, log: log}
	var err error
	k.system, err = parts.EnsureSystem(ctx, log, "qemu", "ovmf", "systemd-stub", "systemd-boot", "swtpm",
		"swtpm_setup", "busybox", "mtools", "objcopy", "mkfs.ext4")
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
	if k.shim, err = unpacked(ctx, log, "shim-signed"); err != nil {
		return nil, err
	}
	if k.grub, err = unpacked(ctx, log, "grub-efi-amd64-signed"); err != nil {
		return nil, err
	}
	return k, nil
}

// guestPrograms is the guest's folder of its programs.
const guestPrograms = "opt/keelson/"

// programs is the guest's second disk: a tar archive of what it runs, by path in the guest. Disks of one name are the same ones.
// changed, if it is not nil, may change a program once it is stripped.
func (k *Kit) programs(ctx context.Context, name string, paths map[string]string, changed func(path string,
	program []byte)) (string, error) {
	disk := filepath.Join(k.dir, name)
	if _, err := os.Stat(disk); err == nil {
		return disk, nil
	}
	files := map[string][]byte{}
	for at, path := range paths {
		// Without what only debuggers read, which is half of it: the guest's kernel hashes it all.
		out := filepath.Join(k.dir, "stripped")
		if _, err := tool(ctx, k.dir, k.system["objcopy"], "--strip-all", path, out); err != nil {
			return "", err
		}
		var err error
		if files[at], err = os.ReadFile(out); err != nil {
			return "", fmt.Errorf("vmboot: %w", err)
		}
		if changed != nil {
			changed(at, files[at])
		}
	}
	content, err := tarOf(0o755, files)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(disk, content, 0o600); err != nil {
		return "", fmt.Errorf("vmboot: %w", err)
	}
	return disk, nil
}

// agentPrograms has SPIRE's agent, the plugin, and what writes evidence.
func (k *Kit) agentPrograms(ctx context.Context) (string, error) {
	spire, err := parts.Ensure(ctx, k.log, "spire-agent")
	if err != nil {
		return "", err
	}
	own, err := parts.Commands(ctx, k.log, collectCommand, pluginCommand)
	if err != nil {
		return "", err
	}
	return k.programs(ctx, "programs.img", map[string]string{
		guestPrograms + "spire-agent":                 spire["spire-agent"],
		guestPrograms + filepath.Base(pluginCommand):  own[pluginCommand],
		guestPrograms + filepath.Base(collectCommand): own[collectCommand],
	}, nil)
}

// collectPrograms has only what writes evidence.
func (k *Kit) collectPrograms(ctx context.Context) (string, error) {
	own, err := parts.Commands(ctx, k.log, collectCommand)
	if err != nil {
		return "", err
	}
	return k.programs(ctx, "collect.img",
		map[string]string{guestPrograms + filepath.Base(collectCommand): own[collectCommand]}, nil)
}

// NodePrograms makes the disk of a guest that runs what a node of a cluster runs: containerd and its shim, runc, kubelet, and the
// program of package pod, which runs in a container alone. In runc, byte i of the last ones is inverted where change
// is i; 0 changes nothing.
func (k *Kit) NodePrograms(ctx context.Context, name string, change int) (string, error) {
	built, err := parts.Ensure(ctx, k.log, "containerd", "containerd-shim-runc-v2", "kubelet")
	if err != nil {
		return "", err
	}
	system, err := parts.EnsureSystem(ctx, k.log, "runc")
	if err != nil {
		return "", err
	}
	own, err := parts.Commands(ctx, k.log, collectCommand, podCommand)
	if err != nil {
		return "", err
	}
	paths := map[string]string{
		"usr/bin/containerd":              built["containerd"],
		"usr/bin/containerd-shim-runc-v2": built["containerd-shim-runc-v2"], "usr/bin/kubelet": built["kubelet"],
		"usr/sbin/runc": system["runc"], guestPrograms + "collect": own[collectCommand],
		guestPrograms + "pod": own[podCommand],
	}
	libraries, err := libraries(ctx, system["runc"])
	if err != nil {
		return "", err
	}
	for _, path := range libraries {
		paths[strings.TrimPrefix(path, "/")] = path
	}
	return k.programs(ctx, name, paths, func(path string, program []byte) {
		if path == "usr/sbin/runc" && change > 0 {
			program[len(program)-change] ^= 0xFF
		}
	})
}

// libraries are the shared libraries of a program, and its loader, by their paths.
func libraries(ctx context.Context, path string) ([]string, error) {
	out, err := tool(ctx, "", "ldd", path)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, word := range strings.Fields(string(out)) {
		if strings.HasPrefix(word, "/") {
			found = append(found, word)
		}
	}
	return found, nil
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
