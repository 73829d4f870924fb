// Command pod does in the guest, as a user without rights and in a folder of its own, what has the
// kernel write odd entries into IMA's list: it maps a file as code that is open with O_DIRECT, one
// named boot_aggregate below a path too long for the kernel, and runs a program that nobody knows,
// from a file and from memory.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	direct := flag.String("direct", "", "a file on a file system that knows O_DIRECT")
	dir := flag.String("dir", "", "folder to work in, owned by the user")
	user := flag.Int("user", 1000, "user and group to become")
	flag.Parse()
	if *dir == "" { // a program that was run for being run
		return
	}
	if err := run(*direct, *dir, *user); err != nil {
		fmt.Fprintln(os.Stderr, "pod:", err)
		os.Exit(1)
	}
}

func run(direct, dir string, user int) error {
	err := errors.Join(unix.Setgroups(nil), unix.Setresgid(user, user, user), unix.Setresuid(user, user, user))
	if err != nil {
		return fmt.Errorf("become user %d: %w", user, err)
	}
	// After a change of user the kernel keeps /proc/PID from its own process, and with it programs
	// in memory.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl: %w", err)
	}
	if unix.Setuid(0) == nil {
		return errors.New("the process can become root again")
	}
	for _, act := range []func() error{
		func() error { return mapped(direct, unix.O_RDONLY|unix.O_DIRECT) },
		func() error { return longPath(dir) },
		func() error { return unknown(dir) },
		memory,
	} {
		if err := act(); err != nil {
			return err
		}
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
		return fmt.Errorf("map %s: %w", name, err)
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

func unknown(dir string) error {
	program, err := other()
	if err != nil {
		return err
	}
	name := filepath.Join(dir, "unknown")
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
