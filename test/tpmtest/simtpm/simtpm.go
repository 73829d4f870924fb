// Package simtpm serves the TPM 2.0 reference simulator on a Unix socket, for tests and
// for the demo on machines without swtpm. It is compiled in with cgo and holds one TPM
// per process. Nothing that ships imports it.
package simtpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/google/go-tpm-tools/simulator"
)

const (
	header     = 10      // bytes of a command's or response's header
	maxMessage = 8 << 10 // bytes of one command or response
)

// Server is a simulated TPM on a socket.
type Server struct {
	sim      *simulator.Simulator
	listener *net.UnixListener
}

// Listen starts the process's simulator, which must not run yet, on a new socket.
func Listen(path string) (*Server, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("simtpm: %w", err)
	}
	sim, err := simulator.Get()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("simtpm: %w", err), l.Close())
	}
	return &Server{sim: sim, listener: l}, nil
}

// Serve answers raw TPM commands, one connection at a time as swtpm does, until the
// context ends. It closes the socket and the simulator.
func (s *Server) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.listener.Close() })
	defer stop()
	defer func() { _ = s.listener.Close() }()
	for {
		conn, err := s.listener.AcceptUnix()
		if ctx.Err() != nil {
			return s.sim.Close()
		}
		if err != nil {
			return errors.Join(fmt.Errorf("simtpm: %w", err), s.sim.Close())
		}
		s.serveConn(ctx, conn)
	}
}

// serveConn ends with its client, whose mistakes are not the TPM's.
func (s *Server) serveConn(ctx context.Context, conn *net.UnixConn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	defer func() { _ = conn.Close() }()
	buf := make([]byte, maxMessage)
	for {
		if _, err := io.ReadFull(conn, buf[:header]); err != nil {
			return
		}
		size := binary.BigEndian.Uint32(buf[2:])
		if size < header || size > maxMessage {
			return
		}
		if _, err := io.ReadFull(conn, buf[header:size]); err != nil {
			return
		}
		if _, err := s.sim.Write(buf[:size]); err != nil {
			return
		}
		n, err := s.sim.Read(buf)
		if err != nil && !errors.Is(err, io.EOF) {
			return
		}
		if _, err := conn.Write(buf[:n]); err != nil {
			return
		}
	}
}
