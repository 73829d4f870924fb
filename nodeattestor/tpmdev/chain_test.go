package tpmdev_test

import (
	"bytes"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
	"github.com/keelson-project/keelson/test/tpmtest"
)

const firstChain = 0x01c00100

// defineOnly defines an NV index of a platform's and writes nothing into it.
func defineOnly(t *testing.T, path string, index uint32, size int, attributes tpm2.TPMANV, auth []byte) {
	t.Helper()
	tpm, err := linuxudstpm.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tpm.Close() }()
	attributes.PPWrite, attributes.NoDA, attributes.PlatformCreate = true, true, true
	_, err = tpm2.NVDefineSpace{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)},
		Auth:       tpm2.TPM2BAuth{Buffer: auth},
		PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{NVIndex: tpm2.TPMHandle(index), NameAlg: tpm2.TPMAlgSHA256, Attributes: attributes, DataSize: uint16(size)}),
	}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
}

// write fills an index that defineOnly made.
func write(t *testing.T, path string, index uint32, data []byte) {
	t.Helper()
	tpm, err := linuxudstpm.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tpm.Close() }()
	public, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tpm2.NVWrite{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: public.NVName},
		Data:       tpm2.TPM2BMaxNVBuffer{Buffer: data},
	}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
}

// Vendors store the certificates of an EK's issuers across the chain indices in their own ways. Whatever is wrong with one of
// them, the EK's own certificate and what is whole of the chain are presented.
func TestChainIndicesOfEveryKindLeaveTheEKItsCertificate(t *testing.T) {
	other, err := tpmtest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	store := func(t *testing.T, path string, index uint32, data []byte) {
		t.Helper()
		if err := tpmtest.StoreNV(path, index, data); err != nil {
			t.Fatal(err)
		}
	}
	readable := tpm2.TPMANV{AuthRead: true, OwnerRead: true, PPRead: true}
	for name, c := range map[string]struct {
		prepare func(t *testing.T, path string, ca *tpmtest.CA)
		want    func(ca *tpmtest.CA) []*x509.Certificate
	}{
		"two indices, a certificate each": {
			func(t *testing.T, path string, ca *tpmtest.CA) {
				store(t, path, firstChain, ca.Issuer().Raw)
				store(t, path, firstChain+1, other.Issuer().Raw)
			},
			func(ca *tpmtest.CA) []*x509.Certificate { return []*x509.Certificate{ca.Issuer(), other.Issuer()} },
		},
		"one certificate split over three indices, another behind it": {
			func(t *testing.T, path string, ca *tpmtest.CA) {
				der := ca.Issuer().Raw
				store(t, path, firstChain, der[:100])
				store(t, path, firstChain+1, der[100:200])
				store(t, path, firstChain+2, append(bytes.Clone(der[200:]), other.Issuer().Raw...))
			},
			func(ca *tpmtest.CA) []*x509.Certificate { return []*x509.Certificate{ca.Issuer(), other.Issuer()} },
		},
		"an index that was never written, before and between": {
			func(t *testing.T, path string, ca *tpmtest.CA) {
				store(t, path, firstChain+1, ca.Issuer().Raw)
				store(t, path, firstChain+3, other.Issuer().Raw)
				undefine(t, path, firstChain)
				defineOnly(t, path, firstChain, 700, readable, nil)
				defineOnly(t, path, firstChain+2, 700, readable, nil)
			},
			func(ca *tpmtest.CA) []*x509.Certificate { return []*x509.Certificate{ca.Issuer(), other.Issuer()} },
		},
		"an index that asks for a password": {
			func(t *testing.T, path string, ca *tpmtest.CA) {
				store(t, path, firstChain, ca.Issuer().Raw)
				defineOnly(t, path, firstChain+1, 16, tpm2.TPMANV{AuthRead: true}, []byte("secret"))
				write(t, path, firstChain+1, bytes.Repeat([]byte{0x30}, 16))
				store(t, path, firstChain+2, other.Issuer().Raw)
			},
			func(ca *tpmtest.CA) []*x509.Certificate { return []*x509.Certificate{ca.Issuer(), other.Issuer()} },
		},
		"an index for the platform alone": {
			func(t *testing.T, path string, ca *tpmtest.CA) {
				store(t, path, firstChain, ca.Issuer().Raw)
				defineOnly(t, path, firstChain+1, 16, tpm2.TPMANV{PPRead: true}, nil)
				write(t, path, firstChain+1, bytes.Repeat([]byte{0x30}, 16))
			},
			func(ca *tpmtest.CA) []*x509.Certificate { return []*x509.Certificate{ca.Issuer()} },
		},
		"a certificate whose middle cannot be read": {
			func(t *testing.T, path string, ca *tpmtest.CA) {
				der := ca.Issuer().Raw
				store(t, path, firstChain, der[:100])
				defineOnly(t, path, firstChain+1, 100, readable, nil)
				store(t, path, firstChain+2, der[200:])
				store(t, path, firstChain+3, other.Issuer().Raw)
			},
			// What begins after the gap is the rest of a certificate, so nothing is known to begin in that run.
			func(*tpmtest.CA) []*x509.Certificate { return nil },
		},
		"an index of zeros": {
			func(t *testing.T, path string, _ *tpmtest.CA) { store(t, path, firstChain, make([]byte, 600)) },
			func(*tpmtest.CA) []*x509.Certificate { return nil },
		},
		"a structure that is no certificate before one that is": {
			func(t *testing.T, path string, ca *tpmtest.CA) {
				store(t, path, firstChain, append([]byte{0x30, 3, 2, 1, 5}, ca.Issuer().Raw...))
			},
			func(ca *tpmtest.CA) []*x509.Certificate { return []*x509.Certificate{ca.Issuer()} },
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := tpmtest.Start(t)
			ca := manufacture(t, path, "L-2")
			c.prepare(t, path, ca)
			e, err := open(t, path, tpmdev.Options{}).Endorsement(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			want := c.want(ca)
			if e.Template != "L-2" || len(e.Certs) != 1+len(want) {
				t.Fatalf("EK %s with %d certificates, want L-2 with %d", e.Template, len(e.Certs), 1+len(want))
			}
			for i, w := range want {
				if !bytes.Equal(e.Certs[i+1], w.Raw) {
					t.Errorf("certificate %d of the chain is another one", i)
				}
			}
			anchors := ek.Anchors{Roots: []*x509.Certificate{ca.Root()}, Mode: ek.Certificate}
			_, err = ek.Verify(e.Certs, e.Public, anchors, time.Now())
			if complete := len(want) > 0; complete != (err == nil) {
				t.Errorf("complete chain: %t; the server says %v", complete, err)
			}
			anchors.Intermediates = []*x509.Certificate{ca.Issuer()}
			if _, err := ek.Verify(e.Certs, e.Public, anchors, time.Now()); err != nil {
				t.Errorf("with the issuer configured on the server: %v", err)
			}
		})
	}
}

// undefine removes an index of the platform's.
func undefine(t *testing.T, path string, index uint32) {
	t.Helper()
	tpm, err := linuxudstpm.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tpm.Close() }()
	public, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}.Execute(tpm)
	if err == nil {
		_, err = tpm2.NVUndefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: public.NVName},
		}.Execute(tpm)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A TPM that fails while its chain is read is a broken TPM, and no reason to present less.
func TestATPMThatFailsAtItsChainIsAnError(t *testing.T) {
	const nvRead = 0x14e
	for name, rc := range map[string]tpm2.TPMRC{"failure mode": tpm2.TPMRCFailure, "dictionary attack": tpm2.TPMRCLockout} {
		t.Run(name, func(t *testing.T) {
			path := tpmtest.Start(t)
			manufacture(t, path, "L-2")
			between := tpmtest.Between(t, path, func(command []byte, forward tpmtest.Forward) []byte {
				if tpmtest.Code(command) == nvRead && bytes.Contains(command[:18], []byte{0x01, 0xc0, 0x01, 0x00}) {
					return tpmtest.Failed(uint32(rc))
				}
				return forward(command)
			})
			_, err := open(t, between, tpmdev.Options{Template: "L-2"}).Endorsement(t.Context())
			if err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("got %v, want an error that says %q", err, name)
			}
		})
	}
}

// An EK whose certificate's index was reserved and never written is an EK without a certificate.
func TestAnEKIndexThatWasNeverWrittenHoldsNoCertificate(t *testing.T) {
	path := tpmtest.Start(t)
	defineOnly(t, path, 0x01c0000a, 700, tpm2.TPMANV{AuthRead: true, OwnerRead: true, PPRead: true}, nil)
	all, err := open(t, path, tpmdev.Options{}).Endorsements(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 2 || all[0].Template != "L-2" || len(all[0].Certs) != 0 {
		t.Errorf("EKs %+v, want L-2 and L-1 without certificates", all)
	}
}
