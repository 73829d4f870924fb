package tpmdev_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// An RSA AK goes through the whole protocol with every kind of EK.
func TestRSAAttestationKeyOfARealTPMIsAccepted(t *testing.T) {
	tpmtest.StartEach(t, func(t *testing.T, path string) {
		ca := manufacture(t, path, "L-1", "L-2")
		for _, template := range []string{"L-1", "L-2"} {
			t.Run("EK template "+template, func(t *testing.T) {
				dev := open(t, path, tpmdev.Options{Template: template, AKType: tpmdev.RSA})
				k := attest(t, dev, identity(t, dev, ca))
				if key := parseAK(t, k); key.Scheme() != "rsassa" || k.Type() != tpmdev.RSA {
					t.Errorf("the AK's scheme is %s, its type %s", key.Scheme(), k.Type())
				}
			})
		}
	})
}

func TestRSAAttestationKeyStaysAcrossRestarts(t *testing.T) {
	path, data := tpmtest.Start(t), t.TempDir()
	var first []byte
	for i := range 3 { // each device is what a restarted agent has
		k, err := open(t, path, tpmdev.Options{AKType: tpmdev.RSA}).AK(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = k.Public
		}
		if !bytes.Equal(first, k.Public) || k.New != (i == 0) || k.Replaced != "" {
			t.Errorf("start %d: another AK, or new %t, replaces %q", i, k.New, k.Replaced)
		}
	}
}

func TestAnotherTypeMakesANewAttestationKeyOnTheSameTPMOnly(t *testing.T) {
	path, data := tpmtest.Start(t), t.TempDir()
	want := func(asked, replaced tpmdev.AKType) tpmdev.AK {
		t.Helper()
		k, err := open(t, path, tpmdev.Options{AKType: asked}).AK(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		if !k.New || k.Replaced != replaced || k.Type() != asked {
			t.Errorf("new %t, replaces %q, type %s; want a new %s in place of %q", k.New, k.Replaced, k.Type(), asked, replaced)
		}
		return k
	}
	ecdsa := want(tpmdev.ECDSA, "")
	want(tpmdev.RSA, tpmdev.ECDSA)
	if again := want(tpmdev.ECDSA, tpmdev.RSA); bytes.Equal(again.Public, ecdsa.Public) {
		t.Error("the first key came back")
	}
	file := filepath.Join(data, tpmdev.AKFile)
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	// The recorded EK outlives the key: another TPM stays another TPM.
	if _, err := open(t, tpmtest.Start(t), tpmdev.Options{AKType: tpmdev.RSA}).AK(t.Context(), data); !errors.Is(err, tpmdev.ErrOtherTPM) {
		t.Errorf("error is %v, want ErrOtherTPM", err)
	}
	if after, err := os.ReadFile(file); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the other TPM's file was changed (%v)", err)
	}
}

// asymmetric is the type in a CreatePrimary's public area.
func asymmetric(command []byte) tpm2.TPMAlgID {
	const createPrimary = 0x131
	if tpmtest.Code(command) != createPrimary {
		return 0
	}
	rest := command[14:] // header and hierarchy
	rest = rest[4+binary.BigEndian.Uint32(rest):]
	rest = rest[2+binary.BigEndian.Uint16(rest):] // inSensitive
	return tpm2.TPMAlgID(binary.BigEndian.Uint16(rest[2:]))
}

func TestTPMThatLacksAnAlgorithmSaysWhichTypeToSet(t *testing.T) {
	for name, c := range map[string]struct {
		lacks       tpm2.TPMAlgID
		rc          uint32
		asked, does tpmdev.AKType
	}{
		"no ECC":   {tpm2.TPMAlgECC, 0x2ca, tpmdev.ECDSA, tpmdev.RSA}, // TPM_RC_TYPE, parameter 2
		"no P-256": {tpm2.TPMAlgECC, 0x2e6, tpmdev.ECDSA, tpmdev.RSA}, // TPM_RC_CURVE, parameter 2
		"no RSA":   {tpm2.TPMAlgRSA, 0x2ca, tpmdev.RSA, tpmdev.ECDSA},
	} {
		t.Run(name, func(t *testing.T) {
			path := tpmtest.Between(t, tpmtest.Start(t), func(command []byte, forward tpmtest.Forward) []byte {
				if asymmetric(command) == c.lacks {
					return tpmtest.Failed(c.rc)
				}
				return forward(command)
			})
			data := t.TempDir()
			_, err := open(t, path, tpmdev.Options{AKType: c.asked}).AK(t.Context(), data)
			if err == nil || !strings.Contains(err.Error(), `set ak_type = "`+string(c.does)+`"`) {
				t.Errorf("error is %v, want one that says to set ak_type", err)
			}
			if _, err := os.Stat(filepath.Join(data, tpmdev.AKFile)); !os.IsNotExist(err) {
				t.Errorf("a key that could not be made was kept (%v)", err)
			}
			dev := open(t, path, tpmdev.Options{AKType: c.does})
			if _, err := dev.AK(t.Context(), data); err != nil {
				t.Errorf("type %s: %v", c.does, err)
			}
		})
	}
}

func TestUnknownAttestationKeyTypeIsAnError(t *testing.T) {
	if _, err := tpmdev.OpenOptions("/dev/null", tpmdev.Options{AKType: "dsa"}); err == nil || !strings.Contains(err.Error(), `"dsa"`) {
		t.Errorf("error is %v", err)
	}
}

// A key is derived once for as long as a device is open; a TPM that was reset in between
// takes none of the saved ones back, and they are derived anew.
func TestKeysAreDerivedOnceAndAgainAfterAReset(t *testing.T) {
	if !hasSwtpm() {
		t.Skip("the simulator forgets its seeds when it stops; swtpm is not installed")
	}
	dir := tpmtest.Dir(t)
	start := func() (string, func() error) {
		path, stop, err := tpmtest.StartSocket(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		return path, stop
	}
	path, stop := start()
	made := 0
	front := tpmtest.Between(t, path, func(command []byte, forward tpmtest.Forward) []byte {
		if asymmetric(command) != 0 {
			made++
		}
		return forward(command)
	})
	dev, data := open(t, front, tpmdev.Options{AKType: tpmdev.RSA}), t.TempDir()
	for range 3 {
		if _, err := dev.AK(t.Context(), data); err != nil {
			t.Fatal(err)
		}
	}
	if made != 2 {
		t.Errorf("%d keys were derived for 3 uses of one AK and its EK", made)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	_, stop = start()
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := dev.AK(t.Context(), data); err != nil {
		t.Fatal(err)
	}
	if made != 4 {
		t.Errorf("%d keys were derived by the time after a reset, want 4", made)
	}
}
