package tpmdev_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/assettag"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
	"github.com/keelson-project/keelson/test/tpmtest"
)

const quoteCommand = 0x158

// A quote that goes wrong is an error that says how, and the very next one is right: no
// byte of the broken answer is left over for it.
func TestFaultsOfATPMAreErrorsAndLeaveNothingBehind(t *testing.T) {
	type answer func(command []byte, forward tpmtest.Forward) []byte
	failed := func(rc tpm2.TPMRC) answer {
		return func([]byte, tpmtest.Forward) []byte { return tpmtest.Failed(uint32(rc)) }
	}
	edit := func(change func([]byte) []byte) answer {
		return func(command []byte, forward tpmtest.Forward) []byte { return change(forward(command)) }
	}
	for name, c := range map[string]struct {
		fault answer
		is    error  // nil: any
		says  string // in the error
	}{
		"it hangs":                     {func([]byte, tpmtest.Forward) []byte { return nil }, context.DeadlineExceeded, "did not answer in time"},
		"half of a response":           {edit(func(b []byte) []byte { return b[:len(b)/2] }), context.DeadlineExceeded, "did not answer in time"},
		"less than a header":           {edit(func(b []byte) []byte { return b[:6] }), nil, "in the middle"},
		"a response too long":          {edit(func(b []byte) []byte { return append(b, 1, 2, 3) }), nil, "3 bytes that no command asked for"},
		"the response twice":           {edit(func(b []byte) []byte { return append(b, b...) }), nil, "that no command asked for"},
		"a size beyond every response": {edit(func(b []byte) []byte { binary.BigEndian.PutUint32(b[2:], 1<<20); return b }), nil, "allowed are"},
		"a size below a header":        {edit(func(b []byte) []byte { binary.BigEndian.PutUint32(b[2:], 3); return b }), nil, "allowed are"},
		"a size one short":             {edit(func(b []byte) []byte { binary.BigEndian.PutUint32(b[2:], uint32(len(b)-1)); return b }), nil, ""},
		"garbage":                      {edit(func(b []byte) []byte { return bytes.Repeat([]byte{0xa5}, len(b)) }), nil, "allowed are"},
		"a tag without sessions":       {edit(func(b []byte) []byte { b[1] = 1; return b }), nil, "tag 0x8001, wanted 0x8002"},
		"failure mode":                 {failed(tpm2.TPMRCFailure), tpm2.TPMRCFailure, "failure mode"},
		"lockout":                      {failed(tpm2.TPMRCLockout), tpm2.TPMRCLockout, "dictionary attack"},
		"no room":                      {failed(tpm2.TPMRCObjectMemory), tpm2.TPMRCObjectMemory, "/dev/tpmrm0"},
		"an error with a tag of data":  {func([]byte, tpmtest.Forward) []byte { return []byte{0x80, 2, 0, 0, 0, 10, 0, 0, 1, 1} }, nil, "tag 0x8002"},
	} {
		t.Run(name, func(t *testing.T) {
			broken := false
			path := tpmtest.Between(t, tpmtest.Start(t), func(command []byte, forward tpmtest.Forward) []byte {
				if broken && tpmtest.Code(command) == quoteCommand {
					broken = false
					return c.fault(command, forward)
				}
				return forward(command)
			})
			dev := open(t, path, tpmdev.Options{})
			k, err := dev.AK(t.Context(), t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			sel := nodeclaim.Selection{Bank: nodeclaim.SHA256, PCRs: []int{0, 10}}
			broken = true
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err = dev.Quote(ctx, k, []byte("first"), []nodeclaim.Selection{sel})
			if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error is %v, want %v and %q", err, c.is, c.says)
			}
			quotes, err := dev.Quote(t.Context(), k, []byte("second"), []nodeclaim.Selection{sel})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := quote.Verify(parseAK(t, k), quotes[0].Evidence, []byte("second"), sel); err != nil {
				t.Error(err)
			}
		})
	}
}

// An answer that comes after the deadline goes nowhere.
func TestAnswerAfterTheDeadlineIsNotTheNextQuotes(t *testing.T) {
	late, given := make(chan struct{}), false
	path := tpmtest.Between(t, tpmtest.Start(t), func(command []byte, forward tpmtest.Forward) []byte {
		out := forward(command)
		if tpmtest.Code(command) == quoteCommand && !given {
			given = true
			<-late
		}
		return out
	})
	dev := open(t, path, tpmdev.Options{})
	k, err := dev.AK(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	sels := []nodeclaim.Selection{{Bank: nodeclaim.SHA256, PCRs: []int{0}}}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := dev.Quote(ctx, k, []byte("first"), sels); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error is %v, want context.DeadlineExceeded", err)
	}
	close(late)
	quotes, err := dev.Quote(t.Context(), k, []byte("second"), sels)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := quote.Verify(parseAK(t, k), quotes[0].Evidence, []byte("second"), sels[0]); err != nil {
		t.Error(err)
	}
}

// Clearing a TPM takes the tag away, and nothing else that attestation needs.
func TestClearedTPMKeepsItsKeysAndSaysThatTheTagIsGone(t *testing.T) {
	tpmtest.StartEach(t, func(t *testing.T, path string) {
		ca, data := manufacture(t, path, "L-2"), t.TempDir()
		dev := open(t, path, tpmdev.Options{})
		before, err := dev.AK(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		if err := dev.ProvisionTag(t.Context(), assettag.DefaultIndex, [assettag.DigestSize]byte{1}); err != nil {
			t.Fatal(err)
		}
		if err := tpmtest.Clear(path); err != nil {
			t.Fatal(err)
		}
		after, err := dev.AK(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(before.Public, after.Public) {
			t.Error("the AK changed")
		}
		attest(t, dev, identity(t, dev, ca))
		_, err = dev.CertifyTag(t.Context(), after, []byte("n"), assettag.DefaultIndex)
		if !errors.Is(err, tpmdev.ErrNoTag) || !strings.Contains(err.Error(), "provision") {
			t.Errorf("error is %v, want ErrNoTag with what to do", err)
		}
	})
}

// A new endorsement seed makes it another TPM, also for an agent that was running.
func TestTPMWithANewEndorsementSeedIsAnotherTPM(t *testing.T) {
	tpmtest.StartEach(t, func(t *testing.T, path string) {
		data := t.TempDir()
		dev := open(t, path, tpmdev.Options{})
		k, err := dev.AK(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		if err := tpmtest.ChangeEPS(path); err != nil {
			t.Fatal(err)
		}
		for name, d := range map[string]*tpmdev.Device{"the running agent": dev, "a restarted agent": open(t, path, tpmdev.Options{})} {
			_, err := d.AK(t.Context(), data)
			if !errors.Is(err, tpmdev.ErrOtherTPM) || !strings.Contains(err.Error(), "remove it to start with a new attestation key") {
				t.Errorf("%s: error is %v, want ErrOtherTPM with what to do", name, err)
			}
			if _, err := d.Quote(t.Context(), k, []byte("n"), []nodeclaim.Selection{{Bank: nodeclaim.SHA256, PCRs: []int{0}}}); !errors.Is(err, tpmdev.ErrOtherTPM) {
				t.Errorf("%s quotes with the old key: %v", name, err)
			}
		}
	})
}

// A TPM 1.2 is told by name, at once, and by whoever asks it.
func TestTPM12IsRefusedByName(t *testing.T) {
	path := tpmtest.StartTPM12(t)
	_, err := tpmdev.Open(path)
	if !errors.Is(err, tpmdev.ErrTPM12) || !strings.Contains(err.Error(), "TPM 1.2") {
		t.Errorf("error is %v, want ErrTPM12", err)
	}
}

// The same without such a TPM: the answers that a TPM 1.2 gives to a TPM 2.0 command.
func TestTPM12AnswersAreKnown(t *testing.T) {
	for name, rc := range map[string]byte{"TPM_BADTAG": 0x1e, "TPM_BAD_ORDINAL": 0x0a, "TPM_INVALID_POSTINIT": 0x26, "TPM_SUCCESS": 0} {
		path := tpmtest.Between(t, "", func([]byte, tpmtest.Forward) []byte { return []byte{0x00, 0xc4, 0, 0, 0, 10, 0, 0, 0, rc} })
		if _, err := tpmdev.Open(path); !errors.Is(err, tpmdev.ErrTPM12) {
			t.Errorf("%s: error is %v, want ErrTPM12", name, err)
		}
	}
}

// An empty success is no answer to a command that has one; the TPM library would take it
// for one full of zeros, or panic.
func TestEmptySuccessIsNoAnswer(t *testing.T) {
	const flush = 0x165
	use := func(dev *tpmdev.Device, data string) error {
		k, err := dev.AK(t.Context(), data)
		if err == nil {
			_, err = dev.Info(t.Context())
		}
		if err == nil {
			_, err = dev.Quote(t.Context(), k, []byte("n"), []nodeclaim.Selection{{Bank: nodeclaim.SHA256, PCRs: []int{0}}})
		}
		return err
	}
	at, n, emptied := -1, 0, uint32(0)
	front := tpmtest.Between(t, tpmtest.Start(t), func(command []byte, forward tpmtest.Forward) []byte {
		n++
		if n-1 != at {
			return forward(command)
		}
		emptied = tpmtest.Code(command)
		return []byte{0x80, command[1], 0, 0, 0, 10, 0, 0, 0, 0}
	})
	if err := use(open(t, front, tpmdev.Options{}), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	total := n
	if total < 20 {
		t.Fatalf("only %d commands", total)
	}
	for at = range total {
		n = 0
		dev, err := tpmdev.Open(front)
		if err != nil {
			continue
		}
		if err := use(dev, t.TempDir()); err == nil && emptied != flush {
			t.Errorf("command %d of %d (0x%x) may be answered with nothing", at, total, emptied)
		}
		if err := dev.Close(); err != nil {
			t.Error(err)
		}
	}
}
