package tpmdev_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
	"golang.org/x/sys/unix"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// terminal is a character device whose other end the test holds. Like a TPM's it is
// read with poll, and unlike one every machine has it.
func terminal(t *testing.T) (master *os.File, path string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { _ = master.Close() })
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	path = fmt.Sprintf("/dev/pts/%d", number)
	// Raw, and kept open so that closing the device does not hang the terminal up.
	slave, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	raw := &unix.Termios{Cflag: unix.CS8 | unix.CREAD}
	raw.Cc[unix.VMIN] = 1
	if err := unix.IoctlSetTermios(int(slave.Fd()), unix.TCSETS, raw); err != nil {
		t.Fatal(err)
	}
	return master, path
}

func TestCharacterDevice(t *testing.T) {
	master, path := terminal(t)
	behind, err := linuxudstpm.Open(tpmtest.Start(t))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			command := make([]byte, 10)
			if _, err := io.ReadFull(master, command); err != nil {
				return
			}
			command = append(command, make([]byte, binary.BigEndian.Uint32(command[2:])-10)...)
			if _, err := io.ReadFull(master, command[10:]); err != nil {
				return
			}
			time.Sleep(120 * time.Millisecond) // a response is never there at once
			response, err := behind.Send(command)
			if err != nil {
				return
			}
			if _, err := master.Write(response); err != nil {
				return
			}
		}
	}()
	dev := open(t, path, tpmdev.Options{})
	got, err := dev.PCRRead(t.Context(), nodeclaim.Selection{Bank: nodeclaim.SHA256, PCRs: []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 10 {
		t.Errorf("%d PCRs were read, want 10", len(got))
	}
}

func TestCharacterDeviceThatHangsEndsWithTheDeadline(t *testing.T) {
	master, path := terminal(t)
	go func() { _, _ = io.ReadFull(master, make([]byte, 1<<20)) }()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, err := tpmdev.OpenContext(ctx, path, tpmdev.Options{})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v, want context.DeadlineExceeded", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}
