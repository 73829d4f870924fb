// Command pod is what a container of the guest runs. Without flags it ends at once. With -worst it
// does what has the kernel write odd entries into IMA's list, and what could pass for the host's
// files: it maps a file as code that is open with O_DIRECT, one named boot_aggregate below a path
// too long for the kernel, and one that kubelet made, runs a program that nobody knows from its root
// file system, a volume, /dev and memory, and maps one in a volume that lies where the host has
// runc. It maps files even where it may not: the kernel measures before it refuses. It maps files that
// it has open for writing, which are violations.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() {
	worst := flag.Bool("worst", false, "do the worst")
	data := flag.String("data", "", "volume that may be executed from; boot/pod/direct.bin in it is on a file system that knows O_DIRECT")
	programs := flag.String("programs", "", "volume that lies over the folder that has runc on the host")
	flag.Parse()
	if !*worst { // also a program that was run for being run
		return
	}
	if err := run(*data, filepath.Join(*programs, "runc")); err != nil {
		fmt.Fprintln(os.Stderr, "pod:", err)
		os.Exit(1)
	}
}

func run(data, runc string) error {
	for _, act := range []func() error{
		func() error { return mapped(filepath.Join(data, "boot/pod/direct.bin"), unix.O_RDONLY|unix.O_DIRECT) },
		func() error { return longPath(data) },
		func() error { return unknown(filepath.Join(data, "unknown")) },
		func() error { return unknown("/unknown") },
		func() error { return unknown("/dev/unknown") },
		memory,
		confined,
		func() error { return alike(runc) },
		func() error { return mapped("/dev/unknown", unix.O_RDWR) },
		func() error { return mapped("/unknown", unix.O_RDWR) },
		func() error { return tried("/etc/hosts", unix.O_RDWR) },
		func() error { return tried(runc, unix.O_RDWR) },
	} {
		if err := act(); err != nil {
			return err
		}
	}
	return nil
}

// alike writes a program that no set has where the host has another, and maps it as code.
func alike(name string) error {
	program, err := other()
	if err != nil {
		return err
	}
	if err := os.WriteFile(name, program, 0o700); err != nil {
		return err
	}
	return tried(name, unix.O_RDONLY)
}

// tried maps a file as code. What the mount says against that is said after the kernel has measured it.
func tried(name string, flags int) error {
	if err := mapped(name, flags); err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return nil
}

// confined checks that the process can mount nothing and make no namespace to mount in.
func confined() error {
	if err := unix.Mount("tmpfs", "/usr", "tmpfs", 0, ""); !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("the container can mount: %w", err)
	}
	namespace := exec.Command("/pod")
	namespace.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS}
	if err := namespace.Run(); err == nil {
		return errors.New("the container can make a user namespace")
	}
	return nil
}

// mapped maps a file as code, which the kernel measures.
func mapped(name string, flags int) error {
	fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	code, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
	if err != nil {
		return errors.Join(fmt.Errorf("map %s: %w", name, err), unix.Close(fd))
	}
	return errors.Join(unix.Munmap(code), unix.Close(fd))
}

// longPath maps a file named boot_aggregate below a path longer than PATH_MAX.
func longPath(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return err
	}
	folder := strings.Repeat("d", 250)
	for range 20 {
		if err := errors.Join(os.Mkdir(folder, 0o700), os.Chdir(folder)); err != nil {
			return err
		}
	}
	if err := os.WriteFile("boot_aggregate", make([]byte, 4096), 0o600); err != nil {
		return err
	}
	err := mapped("boot_aggregate", unix.O_RDONLY)
	return errors.Join(err, os.Chdir(dir))
}

// other is this program with one byte more, which is another program to IMA.
func other() ([]byte, error) {
	self, err := os.ReadFile("/proc/self/exe")
	return append(self, 0), err
}

// unknown writes a program that no set has, and runs it.
func unknown(name string) error {
	program, err := other()
	if err != nil {
		return err
	}
	if err := os.WriteFile(name, program, 0o700); err != nil {
		return err
	}
	return exec.Command(name).Run()
}

// memory runs a program that lies in no file system.
func memory() error {
	program, err := other()
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("pod", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	if _, err := unix.Write(fd, program); err != nil {
		return err
	}
	// Through a second descriptor: nobody may have a running program open for writing.
	name := fmt.Sprintf("/proc/self/fd/%d", fd)
	read, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Close(fd); err != nil {
		return err
	}
	return exec.Command(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), read)).Run()
}
