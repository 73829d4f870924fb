package parts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// System is something that the operating system provides: a Debian package and the file that shows that it is there.
type System struct {
	// Name is what people call it.
	Name string
	// Package is the Debian and Ubuntu package.
	Package string
	// Files are alternatives: the first that exists is the tool's path. A name without a slash is looked up on PATH and in
	// the sbin folders, which an ordinary user's PATH lacks.
	Files []string
}

// Systems returns every system part that the tests and the demo can use.
func Systems() []System {
	return []System{
		{"swtpm", "swtpm", []string{"swtpm"}},
		{"swtpm_setup", "swtpm-tools", []string{"swtpm_setup"}},
		{"runc", "runc", []string{"runc"}},
		{"cni", "containernetworking-plugins", []string{"/usr/lib/cni/bridge", "/opt/cni/bin/bridge"}},
		{"ip", "iproute2", []string{"ip"}},
		{"nft", "nftables", []string{"nft"}},
		{"iptables", "iptables", []string{"xtables-nft-multi"}},
		{"conntrack", "conntrack", []string{"conntrack"}},
		{"pip", "python3-pip", []string{"pip3", "pip"}},
		{"gcc", "gcc", []string{"gcc"}},
		{"libssl", "libssl-dev", []string{"/usr/include/openssl/evp.h", "/usr/local/include/openssl/evp.h"}},
		{"qemu", "qemu-system-x86", []string{"qemu-system-x86_64"}},
		{"ovmf", "ovmf", []string{"/usr/share/OVMF/OVMF_CODE_4M.fd"}},
		{"systemd-stub", "systemd-boot-efi", []string{"/usr/lib/systemd/boot/efi/linuxx64.efi.stub"}},
		{"systemd-boot", "systemd-boot-efi", []string{"/usr/lib/systemd/boot/efi/systemd-bootx64.efi"}},
		{"busybox", "busybox-static", []string{"busybox"}},
		{"mtools", "mtools", []string{"mtools"}},
		{"objcopy", "binutils", []string{"objcopy"}},
		{"mkfs.ext4", "e2fsprogs", []string{"mkfs.ext4"}},
	}
}

// MissingError says which system parts are absent and what would bring them.
type MissingError struct {
	// Names are the missing parts, Packages the Debian packages that hold them.
	Names, Packages []string
	// Cause is why they were not installed.
	Cause error
}

// Error names what is missing and the command that brings it.
func (e *MissingError) Error() string {
	return fmt.Sprintf("parts: missing %s: %v; install them with: apt-get install %s",
		strings.Join(e.Names, ", "), e.Cause, strings.Join(e.Packages, " "))
}

// Unwrap returns the reason why nothing was installed.
func (e *MissingError) Unwrap() error { return e.Cause }

// EnsureSystem returns the path of each named system part. Missing ones are installed with apt-get when the process is root on
// a machine that has it. What stays missing is reported as a *MissingError together with the paths that were found, so that a
// caller with a fallback can use it.
func EnsureSystem(ctx context.Context, log io.Writer, names ...string) (map[string]string, error) {
	wanted, err := systems(names)
	if err != nil {
		return nil, err
	}
	paths, missing := find(wanted)
	if len(missing) == 0 {
		return paths, nil
	}
	installErr := install(ctx, log, missing)
	paths, missing = find(wanted)
	if len(missing) == 0 {
		return paths, nil
	}
	report := &MissingError{Cause: installErr}
	for _, s := range missing {
		report.Names = append(report.Names, s.Name)
		report.Packages = append(report.Packages, s.Package)
	}
	if installErr == nil {
		report.Cause = errors.New("apt-get succeeded without bringing them")
	}
	return paths, report
}

func systems(names []string) ([]System, error) {
	var wanted []System
	for _, name := range names {
		found := false
		for _, s := range Systems() {
			if s.Name == name {
				wanted, found = append(wanted, s), true
			}
		}
		if !found {
			return nil, fmt.Errorf("parts: no system part is named %q", name)
		}
	}
	return wanted, nil
}

func find(wanted []System) (map[string]string, []System) {
	paths := make(map[string]string, len(wanted))
	var missing []System
	for _, s := range wanted {
		if path := s.path(); path != "" {
			paths[s.Name] = path
		} else {
			missing = append(missing, s)
		}
	}
	return paths, missing
}

func (s System) path() string {
	for _, file := range s.Files {
		if strings.Contains(file, "/") {
			if _, err := os.Stat(file); err == nil {
				return file
			}
			continue
		}
		if path, err := exec.LookPath(file); err == nil {
			return path
		}
		for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
			if built(filepath.Join(dir, file)) {
				return filepath.Join(dir, file)
			}
		}
	}
	return ""
}

func install(ctx context.Context, log io.Writer, missing []System) error {
	if os.Geteuid() != 0 {
		return errors.New("not running as root, so they cannot be installed")
	}
	apt, err := exec.LookPath("apt-get")
	if err != nil {
		return errors.New("no apt-get on this machine")
	}
	var packages []string
	for _, s := range missing {
		packages = append(packages, s.Package)
	}
	start := time.Now()
	say(log, "installing %s …", strings.Join(packages, " "))
	// A fresh machine has no package lists; a failing update is not fatal where the lists are there already.
	updateErr := run(ctx, apt, "update", "-qq")
	args := append([]string{"install", "-y", "-qq", "--no-install-recommends"}, packages...)
	if err := run(ctx, apt, args...); err != nil {
		return errors.Join(err, updateErr)
	}
	say(log, "installed %s in %.0f s", strings.Join(packages, " "), time.Since(start).Seconds())
	return nil
}

func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w%s", filepath.Base(name), args[0], err, tail(out.String()))
	}
	return nil
}
