package tpmdev_test

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/keelson-project/keelson/nodeattestor/ak"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
	"github.com/keelson-project/keelson/test/tpmtest"
)

func TestInfoOfATPM(t *testing.T) {
	tpmtest.StartEach(t, func(t *testing.T, path string) {
		if err := tpmtest.SetAuth(path, tpm2.TPMRHOwner, []byte("owner")); err != nil {
			t.Fatal(err)
		}
		i, err := open(t, path, tpmdev.Options{}).Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if i.Manufacturer == "" || i.Firmware == "0.0.0.0" || !strings.HasPrefix(i.Revision, "1.") || strings.Join(i.Keys, " ") != "rsa ecc" {
			t.Errorf("identity: %+v", i)
		}
		if !i.OwnerAuth || i.EndorsementAuth || i.LockoutAuth || !i.StorageEnabled || !i.EndorsementOn {
			t.Errorf("hierarchies: %+v", i)
		}
		if i.Lockout.InLockout || i.Lockout.MaxFailures == 0 || i.Clock.Time <= 0 {
			t.Errorf("state: %+v", i)
		}
	})
}

// lockOut guesses wrong until the TPM takes no more guesses.
func lockOut(t *testing.T, path string) {
	t.Helper()
	tpm, err := linuxudstpm.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	area := tpm2.TPMSNVPublic{NVIndex: 0x01800200, NameAlg: tpm2.TPMAlgSHA256, Attributes: tpm2.TPMANV{AuthWrite: true, AuthRead: true}, DataSize: 8}
	_, err = tpm2.NVDefineSpace{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		Auth: tpm2.TPM2BAuth{Buffer: []byte("right")}, PublicInfo: tpm2.New2B(area)}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
	name, err := tpm2.NVName(&area)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		_, err := tpm2.NVWrite{AuthHandle: tpm2.AuthHandle{Handle: area.NVIndex, Name: *name, Auth: tpm2.PasswordAuth([]byte("wrong"))},
			NVIndex: tpm2.NamedHandle{Handle: area.NVIndex, Name: *name}, Data: tpm2.TPM2BMaxNVBuffer{Buffer: make([]byte, 8)}}.Execute(tpm)
		if errors.Is(err, tpm2.TPMRCLockout) {
			if err := tpm.Close(); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("the TPM never locked itself")
}

// Somebody else's wrong guesses do not stop attestation with a low-range EK, whose use no
// guess can unlock; where they do stop it, the error says what to do.
func TestLockoutIsToldAndStopsOnlyHighRangeEKs(t *testing.T) {
	tpmtest.StartEach(t, func(t *testing.T, path string) {
		ca := manufacture(t, path, "L-2", "H-2")
		lockOut(t, path)
		low := open(t, path, tpmdev.Options{Template: "L-2"})
		i, err := low.Info(t.Context())
		if err != nil || !i.Lockout.InLockout || i.Lockout.Failures < i.Lockout.MaxFailures {
			t.Errorf("lockout: %+v, %v", i.Lockout, err)
		}
		attest(t, low, identity(t, low, ca))

		high := open(t, path, tpmdev.Options{Template: "H-2"})
		k, err := high.AK(t.Context(), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		blob, enc, err := ak.Challenge(identity(t, high, ca), parseAK(t, k), []byte("secret"), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := high.Activate(t.Context(), k, blob, enc); !errors.Is(err, tpm2.TPMRCLockout) || !strings.Contains(err.Error(), "wait until it recovers") {
			t.Errorf("error is %v, want TPM_RC_LOCKOUT with what to do", err)
		}
	})
}

func TestKeptAKIsLookedAtAndNeverMade(t *testing.T) {
	path, data := tpmtest.Start(t), t.TempDir()
	dev := open(t, path, tpmdev.Options{AKType: tpmdev.RSA})
	if _, err := dev.KeptAK(t.Context(), data); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no AK: %v, want fs.ErrNotExist", err)
	}
	if _, err := dev.AK(t.Context(), data); err != nil {
		t.Fatal(err)
	}
	if k, err := open(t, path, tpmdev.Options{}).KeptAK(t.Context(), data); err != nil || k.Type() != tpmdev.RSA || k.New {
		t.Errorf("type %s, new %t, %v; want the kept RSA key", k.Type(), k.New, err)
	}
	if _, err := open(t, tpmtest.Start(t), tpmdev.Options{}).KeptAK(t.Context(), data); !errors.Is(err, tpmdev.ErrOtherTPM) {
		t.Errorf("another TPM: %v, want ErrOtherTPM", err)
	}
}
