package tpmdev

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// pipe is a link to a TPM that the test plays.
func pipe(t *testing.T) (*link, net.Conn) {
	t.Helper()
	near, far := net.Pipe()
	t.Cleanup(func() { _ = errors.Join(near.Close(), far.Close()) })
	return &link{ctx: t.Context(), port: near, stream: true, long: time.Minute, short: time.Minute}, far
}

func command(cc tpm2.TPMCC) []byte {
	return binary.BigEndian.AppendUint32([]byte{0x80, 1, 0, 0, 0, 10}, uint32(cc))
}

func response(rc tpm2.TPMRC) []byte { return command(tpm2.TPMCC(rc)) }

// A TPM that was given up on may answer yet: that answer must not become the next command's.
func TestLateAnswerIsNeverTheNextCommands(t *testing.T) {
	l, tpm := pipe(t)
	l.short = time.Millisecond
	go func() { _, _ = io.ReadFull(tpm, make([]byte, 10)) }()
	if _, err := l.Send(command(tpm2.TPMCCGetRandom)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error is %v, want context.DeadlineExceeded", err)
	}
	l.short = time.Minute
	go func() { _, _ = tpm.Write(response(tpm2.TPMRCSuccess)) }()
	if out, err := l.Send(command(tpm2.TPMCCGetRandom)); err == nil || !strings.Contains(err.Error(), "no further command after") {
		t.Errorf("got %x, %v; want no answer and no command", out, err)
	}
}

func TestCommandsThatMakeKeysMayTakeLonger(t *testing.T) {
	l := link{long: keyTimeout, short: commandTimeout}
	for cc, want := range map[tpm2.TPMCC]time.Duration{
		tpm2.TPMCCCreatePrimary: keyTimeout, tpm2.TPMCCClear: keyTimeout, tpm2.TPMCCQuote: commandTimeout, tpm2.TPMCCPCRRead: commandTimeout,
	} {
		if got := l.timeout(command(cc)); got != want {
			t.Errorf("command 0x%x: %s, want %s", uint32(cc), got, want)
		}
	}
}

func TestTPMThatStaysBusyIsAskedABoundedNumberOfTimes(t *testing.T) {
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate} {
		t.Run(rc.Error(), func(t *testing.T) {
			l, tpm := pipe(t)
			asked := 0
			go func() {
				for {
					if _, err := io.ReadFull(tpm, make([]byte, 10)); err != nil {
						return
					}
					asked++
					if _, err := tpm.Write(response(rc)); err != nil {
						return
					}
				}
			}()
			_, err := l.Send(command(tpm2.TPMCCGetRandom))
			if !errors.Is(err, rc) || asked != retries+1 {
				t.Errorf("after %d commands: %v, want %d commands and %v", asked, err, retries+1, rc)
			}
		})
	}
}

// Every condition has words of its own, with what to do; other codes are the caller's.
func TestConditionsOfTheTPMAreExplained(t *testing.T) {
	for _, c := range conditions {
		l, tpm := pipe(t)
		go func() {
			_, _ = io.ReadFull(tpm, make([]byte, 10))
			_, _ = tpm.Write(response(c.rc))
		}()
		_, err := l.Send(command(tpm2.TPMCCGetRandom))
		if !errors.Is(err, c.rc) || !strings.Contains(err.Error(), c.what) {
			t.Errorf("%v: error is %v", c.rc, err)
		}
	}
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCSuccess, tpm2.TPMRCAuthFail, tpm2.TPMRCHandle, tpm2.TPMRCValue} {
		if err := condition(rc); err != nil {
			t.Errorf("0x%x is a condition of the TPM: %v", uint32(rc), err)
		}
	}
}
