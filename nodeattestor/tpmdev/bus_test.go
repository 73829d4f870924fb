package tpmdev_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/ak"
	"github.com/keelson-project/keelson/nodeattestor/assettag"
	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// Who listens on the bus reads neither the activated secret nor an authorisation.
func TestThreat10_NoSecretCrossesTheBus(t *testing.T) {
	tpmtest.StartEach(t, func(t *testing.T, path string) {
		ca := manufacture(t, path, "L-1", "L-2", "H-2")
		owner, endorsement, secret := []byte("the owner's authorisation"), []byte("the endorsement authorisation"), []byte("the secret of this challenge....")
		if err := errors.Join(tpmtest.SetAuth(path, tpm2.TPMRHOwner, owner), tpmtest.SetAuth(path, tpm2.TPMRHEndorsement, endorsement)); err != nil {
			t.Fatal(err)
		}
		var bus bytes.Buffer
		tap := tpmtest.Between(t, path, func(command []byte, forward tpmtest.Forward) []byte {
			out := forward(command)
			bus.Write(command)
			bus.Write(out)
			return out
		})
		for _, template := range []string{"L-1", "L-2", "H-2"} {
			dev := open(t, tap, tpmdev.Options{OwnerAuth: owner, EndorsementAuth: endorsement, Template: template})
			k, err := dev.AK(t.Context(), t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			blob, enc, err := ak.Challenge(identity(t, dev, ca), parseAK(t, k), secret, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := dev.Activate(t.Context(), k, blob, enc); err != nil || !bytes.Equal(got, secret) {
				t.Fatalf("%s: activated %q, %v", template, got, err)
			}
			if err := dev.ProvisionTag(t.Context(), assettag.DefaultIndex, [assettag.DigestSize]byte{1, template[2]}); err != nil {
				t.Fatal(err)
			}
		}
		for name, value := range map[string][]byte{"the activated secret": secret, "the owner's authorisation": owner, "the endorsement hierarchy's authorisation": endorsement} {
			if bytes.Contains(bus.Bytes(), value) {
				t.Errorf("%s crossed the bus", name)
			}
		}
		if bus.Len() < 10_000 {
			t.Errorf("only %d bytes were heard", bus.Len())
		}
	})
}

// Who answers in the TPM's place that an index is for its owner to read, and for nobody else, is not sent
// the owner's authorisation.
func TestThreat10_NobodyOnTheBusCanAskForAnAuthorisation(t *testing.T) {
	path := tpmtest.Start(t)
	manufacture(t, path, "L-2")
	owner := []byte("the owner's authorisation")
	if err := tpmtest.SetAuth(path, tpm2.TPMRHOwner, owner); err != nil {
		t.Fatal(err)
	}
	if err := open(t, path, tpmdev.Options{OwnerAuth: owner}).ProvisionTag(t.Context(), assettag.DefaultIndex, [assettag.DigestSize]byte{1}); err != nil {
		t.Fatal(err)
	}
	const authRead = 1 << 2 // of the second byte of TPMA_NV, which follows header, size, index and name algorithm
	changed, asked := 0, false
	tap := tpmtest.Between(t, path, func(command []byte, forward tpmtest.Forward) []byte {
		asked = asked || bytes.Contains(command, owner)
		out := forward(command)
		if tpmtest.Code(command) == uint32(tpm2.TPMCCNVReadPublic) && len(out) > 22 && out[19]&authRead != 0 {
			out[19] &^= authRead
			changed++
		}
		return out
	})
	dev := open(t, tap, tpmdev.Options{OwnerAuth: owner})
	e, err := dev.Endorsement(t.Context())
	if err != nil || len(e.Certs) > 0 {
		t.Errorf("an EK certificate that only the owner may read: %d certificates, %v", len(e.Certs), err)
	}
	if _, err := dev.Tag(t.Context(), assettag.DefaultIndex); err == nil {
		t.Error("a tag that only the owner may read was read")
	}
	if err := dev.ProvisionTag(t.Context(), assettag.DefaultIndex, [assettag.DigestSize]byte{2}); err != nil {
		t.Error(err)
	}
	if changed < 3 {
		t.Errorf("only %d answers were changed", changed)
	}
	if asked {
		t.Error("the owner's authorisation crossed the bus")
	}
}

// flips runs use once for each byte of the command's response and of the command, behind
// somebody who changes that byte. Whatever comes out without an error must be right.
func flips(t *testing.T, path string, code uint32, use func(ctx context.Context, dev *tpmdev.Device) error) {
	t.Helper()
	var mu sync.Mutex // an agent that waited in vain is done before the bus is
	at, ofCommand, seen := -1, false, 0
	set := func(byteAt int) {
		mu.Lock()
		defer mu.Unlock()
		at = byteAt
	}
	change := func(b []byte) []byte {
		mu.Lock()
		defer mu.Unlock()
		if seen = len(b); at >= 0 && at < len(b) {
			b = bytes.Clone(b)
			b[at] ^= 0x40
		}
		return b
	}
	bus := tpmtest.Between(t, path, func(command []byte, forward tpmtest.Forward) []byte {
		if tpmtest.Code(command) != code {
			return forward(command)
		}
		mu.Lock()
		here := ofCommand
		mu.Unlock()
		if here {
			return forward(change(command))
		}
		return change(forward(command))
	})
	dev := open(t, bus, tpmdev.Options{})
	for _, first := range []int{0, 10} { // a changed header of a command is another command, or none
		mu.Lock()
		ofCommand = first > 0
		mu.Unlock()
		if set(-1); use(t.Context(), dev) != nil {
			t.Fatal("it does not even work with nobody on the bus")
		}
		mu.Lock()
		end := seen
		mu.Unlock()
		failed := 0
		for i := first; i < end; i++ {
			set(i)
			ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond) // a changed size lets the agent wait
			if use(ctx, dev) != nil {
				failed++
			}
			cancel()
		}
		if failed < (end-first)*8/10 {
			t.Errorf("of %d changed bytes (command: %t), only %d were noticed", end-first, first > 0, failed)
		}
	}
}

// Who changes a byte on the bus gets an error, and never another secret or another quote.
func TestThreat10_ChangedBytesOnTheBusAreNoticed(t *testing.T) {
	path := tpmtest.Start(t)
	ca, data := manufacture(t, path, "L-2"), t.TempDir()
	direct := open(t, path, tpmdev.Options{})
	k, err := direct.AK(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	key, secret, nonce := parseAK(t, k), bytes.Repeat([]byte{7}, 32), []byte("nonce")
	blob, enc, err := ak.Challenge(identity(t, direct, ca), key, secret, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("TPM2_ActivateCredential", func(t *testing.T) {
		flips(t, path, 0x147, func(ctx context.Context, dev *tpmdev.Device) error {
			got, err := dev.Activate(ctx, k, blob, enc)
			if err == nil && !bytes.Equal(got, secret) {
				t.Errorf("activated %x", got)
			}
			return err
		})
	})
	t.Run("TPM2_Quote", func(t *testing.T) {
		sel := nodeclaim.Selection{Bank: nodeclaim.SHA256, PCRs: []int{0, 7}}
		flips(t, path, quoteCommand, func(ctx context.Context, dev *tpmdev.Device) error {
			quotes, err := dev.Quote(ctx, k, nonce, []nodeclaim.Selection{sel})
			if err == nil {
				if _, err := quote.Verify(key, quotes[0].Evidence, nonce, sel); err != nil {
					t.Errorf("a changed quote left the agent: %v", err)
				}
			}
			return err
		})
	})
	for name, code := range map[string]uint32{"TPM2_NV_Write": 0x137, "TPM2_NV_WriteLock": 0x138, "TPM2_NV_Read": 0x14e} {
		t.Run(name, func(t *testing.T) {
			digest := byte(0)
			flips(t, path, code, func(ctx context.Context, dev *tpmdev.Device) error {
				digest++
				err := dev.ProvisionTag(ctx, assettag.DefaultIndex, [assettag.DigestSize]byte{digest})
				if err != nil {
					return err
				}
				if tag, err := direct.Tag(t.Context(), assettag.DefaultIndex); err != nil || !tag.Right || tag.Contents[0] != digest {
					t.Errorf("the agent believes in a tag that is %+v (%v)", tag, err)
				}
				return nil
			})
		})
	}
}

// recorded is the EK that sessions are salted with.
func recorded(t *testing.T, data string) (template, hexArea string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(data, tpmdev.AKFile))
	if err != nil {
		t.Fatal(err)
	}
	var s struct{ Template, EK string }
	if err := json.Unmarshal(content, &s); err != nil {
		t.Fatal(err)
	}
	return s.Template, s.EK
}

// The EK that sessions are salted with is the one that servers judge, and stays so when
// the choice changes; the attestation key stays the same.
func TestSessionsAreSaltedWithTheEKThatServersSee(t *testing.T) {
	path, data := tpmtest.Start(t), t.TempDir()
	var first []byte
	for _, c := range []struct {
		name     string
		certify  string
		opts     tpmdev.Options
		template string
		certs    bool
	}{
		{"no certificate at all", "", tpmdev.Options{}, "L-2", false},
		{"again", "", tpmdev.Options{}, "L-2", false},
		{"the RSA EK is certified now", "L-1", tpmdev.Options{}, "L-1", true},
		{"again", "", tpmdev.Options{}, "L-1", true},
		{"the operator asks for another one", "", tpmdev.Options{Template: "H-2"}, "H-2", false},
		{"and no longer", "", tpmdev.Options{}, "L-1", true},
	} {
		if c.certify != "" {
			manufacture(t, path, c.certify)
		}
		dev := open(t, path, c.opts)
		k, err := dev.AK(t.Context(), data)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if first == nil {
			first = k.Public
		}
		e, err := dev.Endorsement(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		template, area := recorded(t, data)
		if e.Template != c.template || template != c.template || area != hex.EncodeToString(e.Public[2:]) || (len(e.Certs) > 0) != c.certs {
			t.Errorf("%s: presents %s with %d certificates, salts with %s; want %s", c.name, e.Template, len(e.Certs), template, c.template)
		}
		if !bytes.Equal(first, k.Public) {
			t.Errorf("%s: the AK changed", c.name)
		}
		if _, err := dev.Quote(t.Context(), k, []byte("n"), []nodeclaim.Selection{{Bank: nodeclaim.SHA256, PCRs: []int{0}}}); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// interposer sits on the bus with an RSA key of his own: he gives it out as the TPM's EK,
// opens every salt that comes encrypted to it, and encrypts it anew to the true EK. Both
// sides then share the session key with him, so that he could read and change all.
type interposer struct {
	key    *rsa.PrivateKey
	ek     ek.Template
	truth  *rsa.PublicKey
	opened int // salts that he read
}

func (i *interposer) area(t *testing.T, key *rsa.PublicKey) (area, name []byte) {
	t.Helper()
	public := i.ek.WithKey(key)
	n, err := tpm2.ObjectName(&public)
	if err != nil {
		t.Fatal(err)
	}
	return tpm2.Marshal(public), n.Buffer
}

func (i *interposer) sit(t *testing.T, path string) string {
	t.Helper()
	const startAuthSession = 0x176
	trueArea, trueName := i.area(t, i.truth)
	ownArea, ownName := i.area(t, &i.key.PublicKey)
	return tpmtest.Between(t, path, func(command []byte, forward tpmtest.Forward) []byte {
		if tpmtest.Code(command) == startAuthSession {
			command = i.resalt(t, command)
		}
		out := forward(command)
		out = bytes.ReplaceAll(out, trueArea, ownArea)
		return bytes.ReplaceAll(out, trueName, ownName)
	})
}

// resalt puts the salt under the true EK, where there is one (TPM 2.0 Part 1, B.10.3:
// OAEP with the EK's name algorithm and label "SECRET").
func (i *interposer) resalt(t *testing.T, command []byte) []byte {
	t.Helper()
	at := 18 // header and two handles
	at += 2 + int(binary.BigEndian.Uint16(command[at:]))
	size := int(binary.BigEndian.Uint16(command[at:]))
	if size == 0 {
		return command
	}
	at += 2
	label := []byte("SECRET\x00")
	salt, err := rsa.DecryptOAEP(sha256.New(), nil, i.key, command[at:at+size], label)
	if err != nil {
		return command // not for him
	}
	i.opened++
	again, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, i.truth, salt, label)
	if err != nil {
		t.Error(err)
		return command
	}
	command = bytes.Clone(command)
	copy(command[at:], again)
	return command
}

func newInterposer(t *testing.T, path string) *interposer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	i := &interposer{key: key}
	for _, t := range ek.Templates() {
		if t.Name == "L-1" {
			i.ek = t
		}
	}
	e, err := open(t, path, tpmdev.Options{Template: "L-1"}).Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(e.Certs[0])
	if err != nil {
		t.Fatal(err)
	}
	i.truth = leaf.PublicKey.(*rsa.PublicKey)
	return i
}

func TestThreat10_InterposerFromTheFirstCommandOnIsRefusedByServers(t *testing.T) {
	path, data := tpmtest.Start(t), t.TempDir()
	ca := manufacture(t, path, "L-1")
	i := newInterposer(t, path)
	genuine, err := ek.HashKey(i.truth)
	if err != nil {
		t.Fatal(err)
	}
	dev := open(t, i.sit(t, path), tpmdev.Options{Template: "L-1"})
	if _, err := dev.AK(t.Context(), data); err != nil {
		t.Fatalf("the agent cannot know it yet: %v", err)
	}
	if i.opened == 0 {
		t.Fatal("he read no salt: this is no test of anything")
	}
	e, err := dev.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for check, anchors := range map[string]ek.Anchors{
		"ek.certificate": {Mode: ek.Certificate, Roots: []*x509.Certificate{ca.Root()}},
		"ek.inventory":   {Mode: ek.Inventory, Inventory: ek.Machines{genuine: {Node: "fra-1"}}},
	} {
		_, err := ek.Verify(e.Certs, e.Public, anchors, time.Now())
		var r *nodeclaim.Refusal
		if !errors.As(err, &r) || r.Check != check {
			t.Errorf("the server's answer is %v, want a refusal of %s", err, check)
		}
	}
	// Once he is gone, what the agent recorded of him is another TPM.
	if _, err := open(t, path, tpmdev.Options{Template: "L-1"}).AK(t.Context(), data); !errors.Is(err, tpmdev.ErrOtherTPM) {
		t.Errorf("error is %v, want ErrOtherTPM", err)
	}
}

func TestThreat10_InterposerWhoComesLaterReadsNothing(t *testing.T) {
	path, data := tpmtest.Start(t), t.TempDir()
	manufacture(t, path, "L-1")
	if _, err := open(t, path, tpmdev.Options{Template: "L-1"}).AK(t.Context(), data); err != nil {
		t.Fatal(err)
	}
	i := newInterposer(t, path)
	for name, opts := range map[string]tpmdev.Options{"the same EK": {Template: "L-1"}, "another EK is asked for": {Template: "L-2"}} {
		if _, err := open(t, i.sit(t, path), opts).AK(t.Context(), data); !errors.Is(err, tpmdev.ErrOtherTPM) {
			t.Errorf("%s: error is %v, want ErrOtherTPM", name, err)
		}
	}
	if i.opened != 0 {
		t.Errorf("he read %d salts", i.opened)
	}
}
