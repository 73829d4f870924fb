package tpmdev_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

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

// A locked index takes no other content, not from the owner and not after a reboot, until
// it is deleted.
func TestTagIsLockedAcrossReboots(t *testing.T) {
	if !hasSwtpm() {
		t.Skip("the simulator forgets its NV memory when it stops; swtpm is not installed")
	}
	dir, digest := tpmtest.Dir(t), [assettag.DigestSize]byte{1}
	const index = assettag.DefaultIndex
	for boot := range 2 {
		path, stop, err := tpmtest.StartSocket(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		dev := open(t, path, tpmdev.Options{})
		if boot == 0 {
			if err := dev.ProvisionTag(t.Context(), index, digest); err != nil {
				t.Fatal(err)
			}
		}
		tag, err := dev.Tag(t.Context(), index)
		if err != nil || !tag.Right || !tag.Locked || !bytes.Equal(tag.Contents, digest[:]) {
			t.Errorf("boot %d: tag %+v, %v", boot, tag, err)
		}
		tpm, err := linuxudstpm.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		public := assettag.NVPublic(index, assettag.NVLocked)
		name, err := tpm2.NVName(&public)
		if err != nil {
			t.Fatal(err)
		}
		_, err = tpm2.NVWrite{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: *name},
			Data:       tpm2.TPM2BMaxNVBuffer{Buffer: make([]byte, assettag.DigestSize)},
		}.Execute(tpm)
		if !errors.Is(err, tpm2.TPMRCNVLocked) {
			t.Errorf("boot %d: writing as owner: %v, want TPM_RC_NV_LOCKED", boot, err)
		}
		if err := errors.Join(tpm.Close(), stop()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTagIsRemoved(t *testing.T) {
	tpmtest.StartEach(t, func(t *testing.T, path string) {
		dev := open(t, path, tpmdev.Options{})
		const index = assettag.DefaultIndex
		if err := dev.RemoveTag(t.Context(), index); !errors.Is(err, tpmdev.ErrNoTag) {
			t.Errorf("removing what is not there: %v, want ErrNoTag", err)
		}
		if err := dev.RemoveTag(t.Context(), 0x01c00002); err == nil || errors.Is(err, tpmdev.ErrNoTag) {
			t.Errorf("removing an index that is not the owner's: %v", err)
		}
		if err := dev.ProvisionTag(t.Context(), index, [assettag.DigestSize]byte{1}); err != nil {
			t.Fatal(err)
		}
		if err := dev.RemoveTag(t.Context(), index); err != nil {
			t.Fatal(err)
		}
		if tag, err := dev.Tag(t.Context(), index); !errors.Is(err, tpmdev.ErrNoTag) {
			t.Errorf("after it was removed: %+v, %v; want ErrNoTag", tag, err)
		}
	})
}
