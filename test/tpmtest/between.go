package tpmtest

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// Forward sends one raw command to the TPM behind a socket of Between.
type Forward func(command []byte) (response []byte)

// Between serves a socket between a client and a TPM, on which answer stands for
// whatever may go wrong there: a broken TPM, or somebody on the bus. What it returns is
// written as it is; nil lets the client wait until it goes. tpm may be "" when answer
// never forwards. The result is the socket's path.
func Between(t testing.TB, tpm string, answer func(command []byte, forward Forward) []byte) (path string) {
	t.Helper()
	path = filepath.Join(Dir(t), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if err := between(conn, tpm, answer); err != nil {
				t.Errorf("tpmtest: between client and TPM: %v", err)
			}
		}
	}()
	return path
}

// Code is a command's TPM_CC.
func Code(command []byte) uint32 { return binary.BigEndian.Uint32(command[6:]) }

// Failed is a response without data: TPM_ST_NO_SESSIONS and a response code.
func Failed(rc uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{0x80, 1, 0, 0, 0, 10}, rc)
}

// between serves one client until it goes.
func between(conn net.Conn, path string, answer func([]byte, Forward) []byte) (err error) {
	defer func() { err = errors.Join(err, conn.Close()) }()
	forward := func(command []byte) []byte {
		// One connection for each command: the client may be gone before the TPM answers.
		tpm, openErr := linuxudstpm.Open(path)
		if openErr != nil {
			err = errors.Join(err, openErr)
			return []byte{0}
		}
		out, sendErr := tpm.Send(command)
		err = errors.Join(err, sendErr, tpm.Close())
		return out
	}
	for {
		command := make([]byte, 10)
		if _, err := io.ReadFull(conn, command); err != nil {
			return nil // the client is gone, which is its right
		}
		command = append(command, make([]byte, binary.BigEndian.Uint32(command[2:])-10)...)
		if _, err := io.ReadFull(conn, command[10:]); err != nil {
			return nil // the client is gone, which is its right
		}
		response := answer(command, forward)
		if response == nil {
			_, _ = io.Copy(io.Discard, conn)
			return err
		}
		if _, writeErr := conn.Write(response); writeErr != nil || err != nil || len(response) < 10 {
			return err
		}
	}
}
