package tpmdev

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"
)

// maxResponse bounds one TPM response in bytes; PC client TPMs say 4096.
const maxResponse = 8 << 10

// How long one command may take, whatever longer deadline the context has. An RSA
// primary takes a hardware TPM up to about a minute, and any command waits for another
// program's before it, so the short bound is far above what a TPM itself needs.
const (
	keyTimeout     = 2 * time.Minute // commands that make keys or seeds
	commandTimeout = 30 * time.Second
)

// retries bounds how often a command that the TPM was too busy for is sent again, with a
// pause that doubles from firstPause to lastPause: about 10 s in all.
const (
	retries    = 15
	firstPause = 20 * time.Millisecond
	lastPause  = time.Second
)

// port is a character device or a socket that takes one raw command and gives one raw response.
type port interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

// link sends commands over a port for the length of one operation. It implements
// transport.TPM. Once a command failed on the way, it sends no further one: a late answer
// must never be taken for the answer to the next command.
type link struct {
	ctx     context.Context // here because transport.TPM has no context; a link lives for one call
	port    port
	stream  bool                // a socket: a response may come in pieces
	unread  func() (int, error) // bytes that wait to be read; nil where a port tells none
	long    time.Duration       // for commands that make keys
	short   time.Duration       // for all others
	pause   time.Duration       // before a busy TPM is first asked again
	failure error               // why the link is of no more use
}

var _ transport.TPM = (*link)(nil)

// dial opens the port for one operation. A device is opened each time, because the
// kernel's resource manager then flushes whatever the last operation left; a raw socket
// is, because swtpm and the simulator serve one connection at a time and others wait.
func dial(ctx context.Context, path string) (*link, error) {
	mode, err := portMode(path)
	if err != nil {
		return nil, err
	}
	l := &link{ctx: ctx, long: keyTimeout, short: commandTimeout, pause: firstPause}
	if mode&os.ModeSocket != 0 {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err != nil {
			return nil, fmt.Errorf("tpmdev: %w", err)
		}
		socket := conn.(*net.UnixConn)
		l.port, l.stream, l.unread = socket, true, func() (int, error) { return unread(socket) }
		return l, nil
	}
	if l.port, err = openCharDevice(path); err != nil {
		return nil, fmt.Errorf("tpmdev: %w", err)
	}
	return l, nil
}

// CheckPath reports what is wrong with the path of a TPM, without asking the TPM.
func CheckPath(path string) error {
	_, err := portMode(path)
	return err
}

// portMode is the mode of a path that is a character device or a socket.
func portMode(path string) (os.FileMode, error) {
	fi, err := os.Stat(path)
	if err != nil {
		if isTPM12(os.DirFS("/sys/class/tpm"), path) {
			return 0, fmt.Errorf("%w (%s: the kernel has no resource manager for it)", ErrTPM12, path)
		}
		return 0, fmt.Errorf("tpmdev: %w; give /dev/tpmrm0 or the Unix socket of a TPM", err)
	}
	if fi.Mode()&(os.ModeSocket|os.ModeCharDevice) == 0 {
		return 0, fmt.Errorf("tpmdev: %s is neither a character device nor a socket", path)
	}
	return fi.Mode(), nil
}

// unread is how many bytes wait to be read.
func unread(conn *net.UnixConn) (n int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	ctlErr := raw.Control(func(fd uintptr) {
		n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) // TIOCINQ is FIONREAD
	})
	return n, errors.Join(err, ctlErr)
}

func (l *link) close() error { return l.port.Close() }

// Send implements transport.TPM: one command, one response, within the command's time
// and the context's deadline. A TPM that is busy is asked again, a bounded number of
// times; a response code that says what is wrong with the TPM itself, and not with the
// command, is an error here, with what to do about it.
func (l *link) Send(command []byte) ([]byte, error) {
	pause := l.pause
	for try := 0; ; try++ {
		if l.failure != nil {
			return nil, fmt.Errorf("tpmdev: no further command after: %w", l.failure)
		}
		response, err := l.exchange(command)
		if err != nil {
			l.failure = err
			return nil, err
		}
		rc := tpm2.TPMRC(binary.BigEndian.Uint32(response[6:]))
		if !busy(rc) {
			return response, condition(rc)
		}
		if try == retries {
			return nil, fmt.Errorf("tpmdev: the TPM was too busy for a command %d times in a row, try again later: %w", try+1, rc)
		}
		select {
		case <-l.ctx.Done():
			return nil, fmt.Errorf("tpmdev: the TPM is busy (%w): %w", rc, l.ctx.Err())
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// timeout is how long a command may take.
func (l *link) timeout(command []byte) time.Duration {
	switch tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) {
	case tpm2.TPMCCCreatePrimary, tpm2.TPMCCCreate, tpm2.TPMCCCreateLoaded, tpm2.TPMCCClear, tpm2.TPMCCChangeEPS:
		return l.long
	default:
		return l.short
	}
}

func (l *link) exchange(command []byte) ([]byte, error) {
	if err := l.ctx.Err(); err != nil {
		return nil, fmt.Errorf("tpmdev: %w", err)
	}
	if l.unread != nil {
		n, err := l.unread()
		if err != nil {
			return nil, fmt.Errorf("tpmdev: %w", err)
		}
		if n != 0 {
			return nil, fmt.Errorf("tpmdev: the TPM sent %d bytes that no command asked for", n)
		}
	}
	deadline := time.Now().Add(l.timeout(command))
	if d, ok := l.ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := l.port.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("tpmdev: deadline: %w", err)
	}
	stop := context.AfterFunc(l.ctx, func() { _ = l.port.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := l.port.Write(command); err != nil {
		return nil, l.explain("write command", err)
	}
	response, err := l.read()
	if err == nil {
		err = checkHeader(command, response)
	}
	if err != nil {
		return nil, l.explain("read response", err)
	}
	return response, nil
}

func (l *link) explain(what string, err error) error {
	if cause := l.ctx.Err(); cause != nil {
		err = cause
	} else if errors.Is(err, os.ErrDeadlineExceeded) {
		err = context.DeadlineExceeded // the command's own, or the port's clock was a moment ahead of the context's
	}
	switch {
	case errors.Is(err, ErrTPM12):
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("tpmdev: %s: the TPM did not answer in time; if it stays so, see the kernel's log and power the machine off and on: %w", what, err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("tpmdev: %s: the TPM ended the connection in the middle of a response: %w", what, err)
	}
	return fmt.Errorf("tpmdev: %s: %w", what, err)
}

// header is tag, size and response code (TPM 2.0 Part 1, section 18.3).
const header = 10

func (l *link) read() ([]byte, error) {
	buf := make([]byte, maxResponse+1)
	if !l.stream { // the driver gives the whole response to one read
		n, err := l.port.Read(buf)
		if err != nil {
			return nil, err
		}
		if n < header || n > maxResponse || int(binary.BigEndian.Uint32(buf[2:])) != n {
			return nil, fmt.Errorf("response of %d bytes does not match its header", n)
		}
		return buf[:n], nil
	}
	if _, err := io.ReadFull(l.port, buf[:header]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(buf[2:])
	if size < header || size > maxResponse {
		return nil, fmt.Errorf("response says it has %d bytes, allowed are %d to %d", size, header, maxResponse)
	}
	if _, err := io.ReadFull(l.port, buf[header:size]); err != nil {
		return nil, err
	}
	return buf[:size], nil
}

// checkHeader refuses a response that a TPM 2.0 does not give to this command: another tag
// than the command's own with success, or than TPM_ST_NO_SESSIONS else; a success with
// nothing in it, which the TPM library takes for an answer full of zeros. Of the commands
// sent here, only TPM2_FlushContext has such an answer (TPM 2.0 Part 1, section 18.3; Part 3, sections 5.2 and 28.4).
func checkHeader(command, response []byte) error {
	tag, success := binary.BigEndian.Uint16(response), binary.BigEndian.Uint32(response[6:]) == 0
	if tag == tagResponse12 {
		return ErrTPM12
	}
	want := uint16(tpm2.TPMSTNoSessions)
	if success {
		want = binary.BigEndian.Uint16(command)
	}
	if tag != want {
		return fmt.Errorf("response has tag 0x%04x, wanted 0x%04x", tag, want)
	}
	if success && len(response) == header && tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) != tpm2.TPMCCFlushContext {
		return errors.New("response says success and holds nothing")
	}
	return nil
}
