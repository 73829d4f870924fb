package tpmdev_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/keelson-project/keelson/nodeattestor/assettag"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
	"github.com/keelson-project/keelson/test/tpmtest"
)

func TestAuthorisationsOfTheHierarchies(t *testing.T) {
	tpmtest.StartEach(t, func(t *testing.T, path string) {
		ca := manufacture(t, path, "L-2")
		owner, endorsement := []byte("owner secret"), []byte("endorsement secret")
		if err := tpmtest.SetAuth(path, tpm2.TPMRHOwner, owner); err != nil {
			t.Fatal(err)
		}
		if err := tpmtest.SetAuth(path, tpm2.TPMRHEndorsement, endorsement); err != nil {
			t.Fatal(err)
		}
		dev := open(t, path, tpmdev.Options{OwnerAuth: owner, EndorsementAuth: endorsement})
		attest(t, dev, identity(t, dev, ca))
		for range 2 {
			if err := dev.ProvisionTag(t.Context(), assettag.DefaultIndex, [assettag.DigestSize]byte{1}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := open(t, path, tpmdev.Options{OwnerAuth: owner}).Endorsement(t.Context()); err == nil {
			t.Error("the endorsement hierarchy needs no authorisation")
		}
		if err := open(t, path, tpmdev.Options{EndorsementAuth: endorsement}).ProvisionTag(t.Context(), assettag.DefaultIndex, [assettag.DigestSize]byte{2}); err == nil {
			t.Error("the owner hierarchy needs no authorisation")
		}
	})
}

func TestTagIsProvisionedCertifiedAndReplaced(t *testing.T) {
	tpmtest.StartEach(t, func(t *testing.T, path string) {
		ca := manufacture(t, path, "L-2")
		dev := open(t, path, tpmdev.Options{})
		id := identity(t, dev, ca)
		k, err := dev.AK(t.Context(), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		nonce := []byte("tag nonce")
		const index = assettag.DefaultIndex
		if _, err := dev.CertifyTag(t.Context(), k, nonce, index); !errors.Is(err, tpmdev.ErrNoTag) {
			t.Errorf("certifying an index that is not there: %v, want ErrNoTag", err)
		}
		if _, err := dev.Tag(t.Context(), index); !errors.Is(err, tpmdev.ErrNoTag) {
			t.Errorf("reading an index that is not there: %v, want ErrNoTag", err)
		}
		if err := tpmtest.StoreNV(path, 0x01c00123, []byte("other")); err != nil {
			t.Fatal(err)
		}
		public, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		for serial := uint64(1); serial <= 2; serial++ {
			signed, err := assettag.Sign(assettag.Document{
				Tags: map[string]string{"country": "DE"}, EKHashes: []string{id.Hash().String()}, Serial: serial,
				NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			}, private, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			if err := dev.ProvisionTag(t.Context(), index, assettag.Digest(signed)); err != nil {
				t.Fatal(err)
			}
			cert, err := dev.CertifyTag(t.Context(), k, nonce, index)
			if err != nil {
				t.Fatal(err)
			}
			digest := assettag.Digest(signed)
			if !bytes.Equal(cert.Contents, digest[:]) {
				t.Errorf("certified %x, want %x", cert.Contents, digest)
			}
			tag, err := assettag.Verify(
				assettag.Evidence{Document: signed, Attest: cert.Attest, Signature: cert.Signature},
				assettag.Expected{Key: parseAK(t, k), Nonce: nonce, EK: id.Hash(), Signers: anyKeys(public), Now: time.Now(), Index: index, MinSerial: serial})
			if err != nil {
				t.Fatal(err)
			}
			if tag.Tags()["country"] != "DE" || tag.Serial() != serial {
				t.Errorf("tag is %v, serial %d", tag.Tags(), tag.Serial())
			}
		}
	})
}
