package tpmdev_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
	"github.com/keelson-project/keelson/test/tpmtest"
)

func TestGarbageFromATPMIsAnError(t *testing.T) {
	for name, response := range map[string][]byte{
		"a short response":      {0x80, 1, 0, 0},
		"a size below a header": {0x80, 1, 0, 0, 0, 9, 0, 0, 0, 0},
		"a size of 4 GiB":       {0x80, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0},
		"an error code":         {0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1},
		"success and no data":   {0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0},
		"another tag":           {0xff, 0xff, 0, 0, 0, 10, 0, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			path := tpmtest.Between(t, "", func([]byte, tpmtest.Forward) []byte { return response })
			if _, err := tpmdev.Open(path); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestHangingTPMEndsWithTheDeadline(t *testing.T) {
	path, stop, err := tpmtest.StartSocket(t.Context(), tpmtest.Dir(t))
	if err != nil {
		t.Fatal(err)
	}
	dev := open(t, path, tpmdev.Options{})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	hang, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = hang.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := dev.Banks(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v, want context.DeadlineExceeded", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}

// A TPM that is busy says so with a warning, and wants the same command again.
func TestBusyTPMIsAskedAgain(t *testing.T) {
	n, busy := 0, 0
	warnings := []tpm2.TPMRC{tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate}
	path := tpmtest.Between(t, tpmtest.Start(t), func(command []byte, forward tpmtest.Forward) []byte {
		if n++; n%2 == 1 {
			busy++
			return tpmtest.Failed(uint32(warnings[busy%len(warnings)]))
		}
		return forward(command)
	})
	banks, err := open(t, path, tpmdev.Options{}).Banks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(banks) == 0 || busy < len(warnings) {
		t.Errorf("banks %v after %d busy answers", banks, busy)
	}
}

// A file that runs while the second bank is quoted must not make the quotes ones of two moments.
func TestBanksAreQuotedAtOneMoment(t *testing.T) {
	const quoteCode, always = 0x158, 1 << 30
	selections := []nodeclaim.Selection{{Bank: nodeclaim.SHA1, PCRs: []int{10}}, {Bank: nodeclaim.SHA256, PCRs: []int{10}}}
	for name, times := range map[string]int{"a file runs once": 1, "files run all the time": always} {
		t.Run(name, func(t *testing.T) {
			real := tpmtest.Start(t)
			extended := 0
			path := tpmtest.Between(t, real, func(command []byte, forward tpmtest.Forward) []byte {
				out := forward(command)
				if tpmtest.Code(command) != quoteCode || extended >= times {
					return out
				}
				extended++
				tpm, err := linuxudstpm.Open(real)
				if err != nil {
					return []byte{0}
				}
				_, err = tpm2.PCRExtend{
					PCRHandle: tpm2.AuthHandle{Handle: 10, Auth: tpm2.PasswordAuth(nil)},
					Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{
						{HashAlg: tpm2.TPMAlgSHA1, Digest: make([]byte, 20)}, {HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)}}},
				}.Execute(tpm)
				if errors.Join(err, tpm.Close()) != nil {
					return []byte{0}
				}
				return out
			})
			dev := open(t, path, tpmdev.Options{})
			k, err := dev.AK(t.Context(), t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			quotes, err := dev.Quote(t.Context(), k, []byte("n"), selections)
			if times == always {
				if !errors.Is(err, tpmdev.ErrUnsteady) {
					t.Fatalf("got %v, want ErrUnsteady", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for i, q := range quotes {
				h := selections[i].Bank.New()
				h.Write(make([]byte, 2*h.Size()))
				if want := h.Sum(nil); !bytes.Equal(q.Values[10], want) {
					t.Errorf("bank %s was quoted at %x, before the file ran; the other after", q.Bank, q.Values[10])
				}
			}
		})
	}
}

// Keys and sessions that a killed client left behind must not fill a TPM without a
// resource manager.
func TestLeftoversOfAKilledClientAreFlushed(t *testing.T) {
	tpmtest.StartEach(t, func(t *testing.T, path string) {
		raw, err := linuxudstpm.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			_, err := tpm2.CreatePrimary{
				PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
				InPublic:      tpm2.New2B(tpm2.ECCSRKTemplate),
			}.Execute(raw)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := tpm2.HMACSession(raw, tpm2.TPMAlgSHA256, 16); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := open(t, path, tpmdev.Options{}).AK(t.Context(), t.TempDir()); err != nil {
			t.Fatal(err)
		}
		for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} {
			rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(raw)
			if err != nil {
				t.Fatal(err)
			}
			list, err := rsp.CapabilityData.Data.Handles()
			if err != nil {
				t.Fatal(err)
			}
			if len(list.Handle) != 0 {
				t.Errorf("handles %x are left", list.Handle)
			}
		}
	})
}

func TestBanksOfATPM(t *testing.T) {
	banks, err := open(t, tpmtest.Start(t), tpmdev.Options{}).Banks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, b := range banks {
		found = found || b == nodeclaim.SHA256
	}
	if !found {
		t.Errorf("banks are %v, without sha256", banks)
	}
}

func TestClosedDeviceAnswersNothing(t *testing.T) {
	dev := open(t, tpmtest.Start(t), tpmdev.Options{})
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := dev.Banks(t.Context()); err == nil {
		t.Error("no error")
	}
}

func TestUnknownTemplateIsAnError(t *testing.T) {
	if _, err := tpmdev.OpenOptions("/dev/null", tpmdev.Options{Template: "L-9"}); err == nil {
		t.Error("no error")
	}
}
