package tpmdev_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/ak"
	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
	"github.com/keelson-project/keelson/test/tpmtest"
)

func manufacture(t *testing.T, path string, templates ...string) *tpmtest.CA {
	t.Helper()
	ca, err := tpmtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	if err := tpmtest.Manufacture(t.Context(), path, ca, templates...); err != nil {
		t.Fatal(err)
	}
	return ca
}

func open(t *testing.T, path string, opts tpmdev.Options) *tpmdev.Device {
	t.Helper()
	dev, err := tpmdev.OpenOptions(path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dev.Close(); err != nil {
			t.Error(err)
		}
	})
	return dev
}

func parseAK(t *testing.T, k tpmdev.AK) ak.Key {
	t.Helper()
	key, err := ak.Parse(k.Public)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func identity(t *testing.T, dev *tpmdev.Device, ca *tpmtest.CA) ek.Identity {
	t.Helper()
	e, err := dev.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id, err := ek.Verify(e.Certs, e.Public, ek.Anchors{Roots: []*x509.Certificate{ca.Root()}, Mode: ek.Certificate}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if id.Hash() != e.Hash {
		t.Errorf("the server's EK hash is %s, the agent's %s", id.Hash(), e.Hash)
	}
	return id
}

// The whole protocol between a real TPM and the checks of the server, for every EK
// template that the TPM supports. The simulator has no RSA of 3072 bits, swtpm has.
func TestEvidenceOfARealTPMIsAccepted(t *testing.T) {
	tpmtest.StartEach(t, func(t *testing.T, path string) {
		templates := []string{"L-1", "L-2", "H-1", "H-2", "H-3"}
		if strings.HasSuffix(t.Name(), "swtpm") {
			templates = append(templates, "H-6")
		}
		ca := manufacture(t, path, templates...)
		for _, name := range templates {
			t.Run(name, func(t *testing.T) {
				dev := open(t, path, tpmdev.Options{Template: name})
				attest(t, dev, identity(t, dev, ca))
			})
		}
	})
}

func attest(t *testing.T, dev *tpmdev.Device, id ek.Identity) tpmdev.AK {
	t.Helper()
	k, err := dev.AK(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	key := parseAK(t, k)
	secret := bytes.Repeat([]byte{7}, 32)
	blob, enc, err := ak.Challenge(id, key, secret, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	got, err := dev.Activate(t.Context(), k, blob, enc)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, secret) {
		t.Errorf("activated secret %x, want %x", got, secret)
	}
	nonce := []byte("a nonce of this challenge")
	sels := []nodeclaim.Selection{
		{Bank: nodeclaim.SHA256, PCRs: []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 17, 23}},
		{Bank: nodeclaim.SHA384, PCRs: []int{0, 7}},
	}
	quotes, err := dev.Quote(t.Context(), k, nonce, sels)
	if err != nil {
		t.Fatal(err)
	}
	for i, sel := range sels {
		q, err := quote.Verify(key, quotes[i].Evidence, nonce, sel)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(sel.PCRs, q.PCRs.Indices(sel.Bank)); diff != "" {
			t.Errorf("quoted PCRs (-want +got):\n%s", diff)
		}
		if !key.InEndorsement(q.QualifiedSigner, id) {
			t.Error("the AK is not recognised as one of the endorsement hierarchy")
		}
	}
	return k
}

func TestCredentialForAnotherAKIsNotActivated(t *testing.T) {
	path := tpmtest.Start(t)
	ca := manufacture(t, path)
	dev := open(t, path, tpmdev.Options{})
	id := identity(t, dev, ca)
	mine, err := dev.AK(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	other, err := dev.AK(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(mine.Public, other.Public) {
		t.Fatal("two data directories have one AK")
	}
	blob, enc, err := ak.Challenge(id, parseAK(t, other), []byte("secret"), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if secret, err := dev.Activate(t.Context(), mine, blob, enc); err == nil {
		t.Errorf("activated %q for an AK that the credential was not made for", secret)
	}
}

func TestAKStaysAcrossRestartsAndReboots(t *testing.T) {
	dir, data := tpmtest.Dir(t), t.TempDir()
	run := func() (tpmdev.AK, quote.Quoted) {
		path, stop, err := tpmtest.StartSocket(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := stop(); err != nil {
				t.Error(err)
			}
		}()
		dev := open(t, path, tpmdev.Options{})
		k, err := dev.AK(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		again, err := dev.AK(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(k.Public, again.Public) {
			t.Error("the AK changed between two calls")
		}
		sel := nodeclaim.Selection{Bank: nodeclaim.SHA256, PCRs: []int{16}}
		quotes, err := dev.Quote(t.Context(), k, []byte("n"), []nodeclaim.Selection{sel})
		if err != nil {
			t.Fatal(err)
		}
		q, err := quote.Verify(parseAK(t, k), quotes[0].Evidence, []byte("n"), sel)
		if err != nil {
			t.Fatal(err)
		}
		return k, q
	}
	first, q1 := run()
	if !hasSwtpm() {
		t.Skip("the simulator forgets its seeds when it stops; swtpm is not installed")
	}
	second, q2 := run()
	if !bytes.Equal(first.Public, second.Public) {
		t.Error("the AK changed with a reboot")
	}
	if q2.ResetCount != q1.ResetCount+1 {
		t.Errorf("resetCount is %d after %d and a reboot", q2.ResetCount, q1.ResetCount)
	}
}

func TestAKOfAnotherTPMIsAClearError(t *testing.T) {
	data := t.TempDir()
	if _, err := open(t, tpmtest.Start(t), tpmdev.Options{}).AK(t.Context(), data); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(data, tpmdev.AKFile))
	if err != nil {
		t.Fatal(err)
	}
	_, err = open(t, tpmtest.Start(t), tpmdev.Options{}).AK(t.Context(), data)
	if !errors.Is(err, tpmdev.ErrOtherTPM) {
		t.Errorf("error is %v, want ErrOtherTPM", err)
	}
	after, err := os.ReadFile(filepath.Join(data, tpmdev.AKFile))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Error("the other TPM's file was changed")
	}
}

func TestUnreadableAKFileIsAnErrorNotANewAK(t *testing.T) {
	path := tpmtest.Start(t)
	dev := open(t, path, tpmdev.Options{})
	for name, content := range map[string]string{
		"no JSON":                    "hello",
		"an unknown key":             `{"version":1,"more":1}`,
		"two of them":                `{"version":1}{"version":1}`,
		"another version":            `{"version":2}`,
		"fields that are missing":    `{"version":1}`,
		"hex that is none":           `{"version":1,"unique":"zz","public":"00","template":"L-2","ek":"00"}`,
		"a type that is none":        `{"version":1,"type":"dsa","unique":"00","public":"00","template":"L-2","ek":"00"}`,
		"a random number too short":  `{"version":1,"type":"rsa","unique":"00","public":"00","template":"L-2","ek":"00"}`,
		"a template that is none":    `{"version":1,"unique":"00","public":"00","template":"X","ek":"00"}`,
		"more bytes than a file has": string(bytes.Repeat([]byte(" "), 17<<10)),
	} {
		t.Run(name, func(t *testing.T) {
			data := t.TempDir()
			if err := os.WriteFile(filepath.Join(data, tpmdev.AKFile), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := dev.AK(t.Context(), data); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestTPMWithoutCertificateStillHasItsEKs(t *testing.T) {
	path := tpmtest.Start(t)
	dev := open(t, path, tpmdev.Options{})
	all, err := dev.Endorsements(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	machines := ek.Machines{}
	names := []string{}
	for _, e := range all {
		names = append(names, e.Template)
		if len(e.Certs) != 0 {
			t.Errorf("%s has certificates that nobody made", e.Template)
		}
		machines[e.Hash] = ek.InventoryEntry{Node: "fra-1"}
	}
	if diff := cmp.Diff([]string{"L-2", "L-1"}, names); diff != "" {
		t.Errorf("EKs (-want +got):\n%s", diff)
	}
	e, err := dev.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id, err := ek.Verify(e.Certs, e.Public, ek.Anchors{Mode: ek.Inventory, Inventory: machines}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if id.Node() != "fra-1" || id.Certified() {
		t.Errorf("node %q, certified %t", id.Node(), id.Certified())
	}
	attest(t, dev, id)
}

// An EK that provisioning made persistent is used instead of deriving it anew, but only
// where it is the very key of the certificate.
func TestPersistentEKIsUsed(t *testing.T) {
	tpmtest.StartEach(t, func(t *testing.T, path string) {
		ca := manufacture(t, path, "L-1")
		if err := tpmtest.Persist(path, 0x81010001, tpm2.RSASRKTemplate); err != nil {
			t.Fatal(err)
		}
		if err := tpmtest.Persist(path, 0x81010002, tpm2.RSAEKTemplate); err != nil {
			t.Fatal(err)
		}
		dev := open(t, path, tpmdev.Options{Template: "L-1"})
		attest(t, dev, identity(t, dev, ca))
	})
}

func TestCertificateOfAnotherKeyIsLeftOut(t *testing.T) {
	path := tpmtest.Start(t)
	ca := manufacture(t, path, "L-1")
	stranger, err := tpmtest.NewSoftAK()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.IssueEK(stranger.Key.Public(), tpmtest.EKOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := tpmtest.StoreNV(path, 0x01c0000a, cert); err != nil {
		t.Fatal(err)
	}
	e, err := open(t, path, tpmdev.Options{}).Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if e.Template != "L-1" || len(e.Certs) != 2 {
		t.Errorf("EK %s with %d certificates, want L-1 with its own and its issuer's", e.Template, len(e.Certs))
	}
}

func TestCancelledContextEndsACall(t *testing.T) {
	dev := open(t, tpmtest.Start(t), tpmdev.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := dev.Banks(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want context.Canceled", err)
	}
}

func TestNoTPMIsAClearError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"a missing path": "/nonexistent/tpm", "a file": file} {
		t.Run(name, func(t *testing.T) {
			if _, err := tpmdev.Open(path); err == nil {
				t.Error("no error")
			}
		})
	}
}
