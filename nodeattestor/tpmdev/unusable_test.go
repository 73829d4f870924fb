package tpmdev_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
	"github.com/keelson-project/keelson/test/tpmtest"
)

func templateNamed(t testing.TB, name string) ek.Template {
	t.Helper()
	for _, l := range ek.Templates() {
		if l.Name == name {
			return l
		}
	}
	t.Fatal("no such template")
	return ek.Template{}
}

// ekOf makes the EK of a public area, as its maker does, and forgets it.
func ekOf(t testing.TB, path string, area tpm2.TPMTPublic) crypto.PublicKey {
	t.Helper()
	tpm, err := linuxudstpm.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tpm.Close() }()
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(area),
	}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.FlushContext{FlushHandle: rsp.ObjectHandle}).Execute(tpm); err != nil {
		t.Fatal(err)
	}
	public, err := rsp.OutPublic.Contents()
	if err != nil {
		t.Fatal(err)
	}
	key, err := tpm2.Pub(*public)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func store(t testing.TB, path string, index uint32, data []byte) {
	t.Helper()
	if err := tpmtest.StoreNV(path, index, data); err != nil {
		t.Fatal(err)
	}
}

// made is a TPM whose maker certified the EK of a public area.
func made(t testing.TB, path string, l ek.Template, area tpm2.TPMTPublic) (*tpmtest.CA, []byte) {
	t.Helper()
	ca, err := tpmtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.IssueEK(ekOf(t, path, area), tpmtest.EKOptions{})
	if err != nil {
		t.Fatal(err)
	}
	store(t, path, l.NVIndex, cert)
	store(t, path, firstChain, ca.Issuer().Raw)
	return ca, cert
}

func TestAnEKThatItsMakerMadeWithANonceOrATemplateAttests(t *testing.T) {
	for _, name := range []string{"L-1", "L-2"} {
		for _, how := range []string{"nonce", "template"} {
			t.Run(name+" "+how, func(t *testing.T) {
				path := tpmtest.Start(t)
				l := templateNamed(t, name)
				nonce := bytes.Repeat([]byte{0xA5}, 20)
				area, ok := l.WithNonce(nonce)
				if !ok {
					t.Fatal("no room")
				}
				ca, _ := made(t, path, l, area)
				nonceIndex, templateIndex, _ := l.VendorIndices()
				if how == "nonce" {
					store(t, path, nonceIndex, nonce)
				} else {
					store(t, path, templateIndex, tpm2.Marshal(area))
				}
				dev := open(t, path, tpmdev.Options{})
				id := identity(t, dev, ca)
				attest(t, dev, id)
				attest(t, open(t, path, tpmdev.Options{Template: name}), id)
				if why := dev.Unusable(); len(why) > 0 {
					t.Errorf("unusable: %q", why)
				}
			})
		}
	}
}

func TestACertificateThatCannotBeUsedIsNamedWithItsIndexAndWhy(t *testing.T) {
	path := tpmtest.Start(t)
	l := templateNamed(t, "L-2")
	area, _ := l.WithNonce([]byte{1, 2, 3})
	_, cert := made(t, path, l, area) // NV does not tell the nonce
	const index = 0x01c0000a
	header := func(size int) []byte { return binary.BigEndian.AppendUint16([]byte{0x10, 1, 0}, uint16(size)) }
	for name, c := range map[string]struct {
		data []byte
		want string // "": nothing is unusable
	}{
		"of another key":            {cert, "holds a certificate of another key than this TPM makes by EK template L-2"},
		"cut":                       {cert[:len(cert)-5], "holds no certificate: it begins with 30 82"},
		"damaged":                   {append(append(bytes.Clone(cert[:4]), 0x31), cert[5:]...), "holds a certificate that cannot be read: certificate 1: x509"},
		"text":                      {[]byte("to be provisioned"), "holds no certificate: it begins with 74 6f"},
		"a header of another kind":  {slices.Concat([]byte{0x10, 1, 1, 0, 9, 0x10, 2}, cert), "which stands for no whole certificate"},
		"a header beyond the index": {slices.Concat(header(len(cert)+3), []byte{0x10, 2}, cert), "its header names"},
		"zeros":                     {make([]byte, 100), ""},
		"erased":                    {bytes.Repeat([]byte{0xFF}, 1600), ""},
	} {
		t.Run(name, func(t *testing.T) {
			store(t, path, index, c.data)
			dev := open(t, path, tpmdev.Options{})
			e, err := dev.Endorsement(t.Context())
			if err != nil || len(e.Certs) > 0 {
				t.Fatalf("%d certificates, %v", len(e.Certs), err)
			}
			got := dev.Unusable()
			if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], "NV index 0x01c0000a ") || !strings.Contains(got[0], c.want)) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if all, err := dev.Endorsements(t.Context()); err != nil || len(all) < 2 || !slices.Equal(dev.Unusable(), got) {
				t.Errorf("%d EKs, %v, unusable %q", len(all), err, dev.Unusable())
			}
		})
	}
	t.Run("of a key that the template has not", func(t *testing.T) {
		store(t, path, index, make([]byte, 8))
		store(t, path, 0x01c00002, cert)
		dev := open(t, path, tpmdev.Options{})
		if _, err := dev.Endorsement(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := dev.Unusable(); len(got) != 1 || !strings.Contains(got[0], "0x01c00002 holds a certificate of a key that EK template L-1 does not make (key on curve P-256)") {
			t.Errorf("got %q", got)
		}
	})
}

func TestACertificateAtAnIndexOfNoKnownTemplateIsNamed(t *testing.T) {
	path := tpmtest.Start(t)
	ca, err := tpmtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.IssueEK(key.Public(), tpmtest.EKOptions{})
	if err != nil {
		t.Fatal(err)
	}
	store(t, path, 0x01c00018, cert)                        // H-4
	store(t, path, 0x01c00019, []byte("its template"))      // no certificate, and nothing to tell
	store(t, path, 0x01c0001e, cert[:60])                   // cut
	store(t, path, 0x01c0001c, bytes.Repeat([]byte{0}, 60)) // blank
	store(t, path, 0x01c00080, cert)                        // beyond the range
	dev := open(t, path, tpmdev.Options{})
	e, err := dev.Endorsement(t.Context())
	if err != nil || len(e.Certs) > 0 {
		t.Fatalf("%d certificates, %v", len(e.Certs), err)
	}
	got := dev.Unusable()
	if len(got) != 1 || !strings.Contains(got[0], "NV index 0x01c00018 holds a certificate of a key on curve P-521, and belongs to none of the EK templates that are supported: L-2") {
		t.Errorf("got %q", got)
	}
	if all, err := dev.Endorsements(t.Context()); err != nil || len(all) < 2 || !slices.Equal(dev.Unusable(), got) {
		t.Errorf("%d EKs, %v, unusable %q", len(all), err, dev.Unusable())
	}
}

func TestTheHeaderOfTPM12IsSkipped(t *testing.T) {
	path := tpmtest.Start(t)
	l := templateNamed(t, "L-2")
	ca, cert := made(t, path, l, l.Area())
	header := append(binary.BigEndian.AppendUint16([]byte{0x10, 1, 0}, uint16(len(cert)+2)), 0x10, 2)
	store(t, path, l.NVIndex, slices.Concat(header, cert, bytes.Repeat([]byte{0xFF}, 300)))
	dev := open(t, path, tpmdev.Options{})
	attest(t, dev, identity(t, dev, ca))
	e, err := dev.Endorsement(t.Context())
	if err != nil || !bytes.Equal(e.Certs[0], cert) {
		t.Errorf("presents %d certificates, %v", len(e.Certs), err)
	}
}

func TestAMakersTemplateThatAsksForMoreIsToldAndNotUsed(t *testing.T) {
	path := tpmtest.Start(t)
	l := templateNamed(t, "L-2")
	area, _ := l.WithNonce([]byte{9})
	area.ObjectAttributes.NoDA = true
	made(t, path, l, area)
	nonceIndex, templateIndex, _ := l.VendorIndices()
	store(t, path, templateIndex, tpm2.Marshal(area))
	store(t, path, nonceIndex, make([]byte, 33))
	dev := open(t, path, tpmdev.Options{})
	e, err := dev.Endorsement(t.Context())
	if err != nil || len(e.Certs) > 0 {
		t.Fatalf("%d certificates, %v", len(e.Certs), err)
	}
	got := strings.Join(dev.Unusable(), "\n")
	for _, want := range []string{"0x01c0000a holds a certificate of another key", "0x01c0000c holds an EK template that differs from L-2", "0x01c0000b holds an EK nonce of 33 bytes"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not said in\n%s", want, got)
		}
	}
}
