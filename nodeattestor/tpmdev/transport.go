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
)

// maxResponse bounds one TPM response in bytes; PC client TPMs say 4096.
const maxResponse = 8 << 10

// commandTimeout bounds one command where the context has no deadline: an RSA primary
// takes a hardware TPM up to about a minute.
const commandTimeout = 2 * time.Minute

// retries and retryDelay bound how often a command that the TPM was too busy for is sent again.
const (
	retries    = 20
	retryDelay = 50 * time.Millisecond
)

// port is a character device or a socket that takes one raw command and gives one raw response.
type port interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

// link sends commands over a port for the length of one operation. It implements
// transport.TPM.
type link struct {
	ctx    context.Context // here because transport.TPM has no context; a link lives for one call
	port   port
	stream bool // a socket: a response may come in pieces
}

var _ transport.TPM = (*link)(nil)

// dial opens the port for one operation. A device is opened each time, because the
// kernel's resource manager then flushes whatever the last operation left; a raw socket
// is, because swtpm and the simulator serve one connection at a time and others wait.
func dial(ctx context.Context, path string) (*link, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("tpmdev: %w; give /dev/tpmrm0 or the Unix socket of a TPM", err)
	}
	switch mode := fi.Mode(); {
	case mode&os.ModeSocket != 0:
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err != nil {
			return nil, fmt.Errorf("tpmdev: %w", err)
		}
		return &link{ctx: ctx, port: conn.(*net.UnixConn), stream: true}, nil
	case mode&os.ModeCharDevice != 0:
		c, err := openCharDevice(path)
		if err != nil {
			return nil, fmt.Errorf("tpmdev: %w", err)
		}
		return &link{ctx: ctx, port: c}, nil
	}
	return nil, fmt.Errorf("tpmdev: %s is neither a character device nor a socket", path)
}

func (l *link) close() error { return l.port.Close() }

// Send implements transport.TPM: one command, one response, within the context's deadline.
func (l *link) Send(command []byte) ([]byte, error) {
	for try := 0; ; try++ {
		response, err := l.exchange(command)
		if err != nil {
			return nil, err
		}
		if try == retries || !busy(response) {
			return response, nil
		}
		select {
		case <-l.ctx.Done():
			return nil, fmt.Errorf("tpmdev: TPM busy: %w", l.ctx.Err())
		case <-time.After(retryDelay):
		}
	}
}

// busy reports whether the TPM asks to have the very same command again
// (TPM 2.0 Part 2, section 6.6.3: TPM_RC_RETRY, TPM_RC_YIELDED, TPM_RC_TESTING).
func busy(response []byte) bool {
	rc := tpm2.TPMRC(binary.BigEndian.Uint32(response[6:]))
	return rc == tpm2.TPMRCRetry || rc == tpm2.TPMRCYielded || rc == tpm2.TPMRCTesting
}

func (l *link) exchange(command []byte) ([]byte, error) {
	if err := l.ctx.Err(); err != nil {
		return nil, fmt.Errorf("tpmdev: %w", err)
	}
	deadline, ok := l.ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(commandTimeout)
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
	if err != nil {
		return nil, l.explain("read response", err)
	}
	return response, nil
}

func (l *link) explain(what string, err error) error {
	if cause := l.ctx.Err(); cause != nil {
		err = cause
	} else if errors.Is(err, os.ErrDeadlineExceeded) {
		err = context.DeadlineExceeded // the port's clock was a moment ahead of the context's
	}
	return fmt.Errorf("tpmdev: %s: %w", what, err)
}

// header is tag, size and response code (TPM 2.0 Part 1, section 18.3).
const header = 10

func (l *link) read() ([]byte, error) {
	buf := make([]byte, maxResponse)
	if !l.stream { // the driver gives the whole response to one read
		n, err := l.port.Read(buf)
		if err != nil {
			return nil, err
		}
		if n < header || int(binary.BigEndian.Uint32(buf[2:])) != n {
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
