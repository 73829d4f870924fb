package tpmdev

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// pollSlice is how long one poll waits, so that a cancelled context is noticed soon.
const pollSlice = 50 * time.Millisecond

// charDevice is a TPM's character device. It is not an os.File: with O_NONBLOCK, which a
// deadline needs, the driver answers a read that comes before the response with 0 bytes,
// which os.File takes for the end of the file. So each read waits with poll(2) first
// (Linux, drivers/char/tpm/tpm-dev-common.c). Kernels before 4.20 ignore O_NONBLOCK, and
// there a command ends only with the driver's own timeout.
type charDevice struct {
	fd int

	mu       sync.Mutex
	deadline time.Time
	waiting  bool // a command was written, its response not read
}

func openCharDevice(path string) (*charDevice, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &charDevice{fd: fd}, nil
}

// SetDeadline bounds reads; a write only hands the command to the driver.
func (c *charDevice) SetDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	return nil
}

// wait is how long the next poll may take, or an error after the deadline.
func (c *charDevice) wait() (time.Duration, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	left := time.Until(c.deadline)
	if left <= 0 {
		return 0, os.ErrDeadlineExceeded
	}
	return min(left, pollSlice), nil
}

// Write hands over one command, which the driver takes whole or not at all.
func (c *charDevice) Write(p []byte) (int, error) {
	n, err := unix.Write(c.fd, p)
	if err != nil {
		return 0, os.NewSyscallError("write", err)
	}
	c.await(true)
	if n != len(p) {
		return n, fmt.Errorf("the driver took %d of %d bytes", n, len(p))
	}
	return n, nil
}

// Read waits for the response until the deadline, and reads it in one go.
func (c *charDevice) Read(p []byte) (int, error) {
	for {
		slice, err := c.wait()
		if err != nil {
			return 0, err
		}
		fds := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}} //nolint:gosec // a descriptor
		n, err := unix.Poll(fds, int(max(slice/time.Millisecond, 1)))
		if errors.Is(err, unix.EINTR) || err == nil && n == 0 {
			continue
		}
		if err != nil {
			return 0, os.NewSyscallError("poll", err)
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			return 0, fmt.Errorf("the device is gone (poll events 0x%x)", fds[0].Revents)
		}
		n, err = unix.Read(c.fd, p)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, os.NewSyscallError("read", err)
		}
		c.await(false)
		return n, nil
	}
}

func (c *charDevice) await(waiting bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = waiting
}

// Close has the resource manager flush what this descriptor left in the TPM. The kernel
// first waits for a command that is under way, up to its own timeout of minutes; the
// caller does not, so that a TPM that hangs does not hang the agent.
func (c *charDevice) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting {
		go func() { _ = unix.Close(c.fd) }() // nobody is left to tell
		return nil
	}
	return os.NewSyscallError("close", unix.Close(c.fd))
}
