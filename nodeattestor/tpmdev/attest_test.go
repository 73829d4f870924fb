package tpmdev_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/keelson-project/keelson/nodeattestor/assettag"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
	"github.com/keelson-project/keelson/test/tpmtest"
	"github.com/keelson-project/keelson/test/vectors"
)

// A real boot, replayed into a TPM, is quoted with the values that the real machine had.
func TestReplayedBootIsQuotedWithTheRealValues(t *testing.T) {
	tpmtest.StartEach(t, func(t *testing.T, path string) {
		boot, err := tpmtest.ParseBoot(vectors.Read(t, "good", vectors.EventLog), vectors.Read(t, "good", vectors.IMALog))
		if err != nil {
			t.Fatal(err)
		}
		dev := open(t, path, tpmdev.Options{})
		if err := tpmtest.Replay(t.Context(), dev, boot); err != nil {
			t.Fatal(err)
		}
		k, err := dev.AK(t.Context(), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		sel := nodeclaim.Selection{Bank: nodeclaim.SHA256, PCRs: []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}}
		quotes, err := dev.Quote(t.Context(), k, []byte(vectors.Nonce), []nodeclaim.Selection{sel})
		if err != nil {
			t.Fatal(err)
		}
		got, err := quote.Verify(parseAK(t, k), quotes[0].Evidence, []byte(vectors.Nonce), sel)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(vectors.Quoted(t, "good").All(), got.PCRs.All()); diff != "" {
			t.Errorf("PCRs (-want +got):\n%s", diff)
		}
	})
}

// A boot of several banks is replayed into each of them.
func TestReplayOfSeveralBanks(t *testing.T) {
	boot, err := tpmtest.ParseBoot(vectors.Read(t, "multibank", vectors.EventLog), vectors.Read(t, "multibank", vectors.IMALog))
	if err != nil {
		t.Fatal(err)
	}
	dev := open(t, tpmtest.Start(t), tpmdev.Options{})
	if err := tpmtest.Replay(t.Context(), dev, boot); err != nil {
		t.Fatal(err)
	}
	if len(boot[0].Digests) != 3 {
		t.Fatalf("the boot has %d banks", len(boot[0].Digests))
	}
	want := vectors.Quoted(t, "multibank")
	got, err := dev.PCRRead(t.Context(), nodeclaim.Selection{Bank: nodeclaim.SHA256, PCRs: want.Indices(nodeclaim.SHA256)})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.All()[nodeclaim.SHA256], got); diff != "" {
		t.Errorf("PCRs (-want +got):\n%s", diff)
	}
}

// While PCRs change all the time, a quote either has the values that it covers or is
// given up; it never has others.
func TestQuoteOnABusyMachine(t *testing.T) {
	path := tpmtest.Start(t)
	dev, other := open(t, path, tpmdev.Options{}), open(t, path, tpmdev.Options{})
	k, err := dev.AK(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	key := parseAK(t, k)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		digests := map[nodeclaim.HashAlg][]byte{nodeclaim.SHA256: make([]byte, 32)}
		for ctx.Err() == nil {
			if err := other.PCRExtend(ctx, 10, digests); err != nil && ctx.Err() == nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	sel := nodeclaim.Selection{Bank: nodeclaim.SHA256, PCRs: []int{0, 10}}
	for range 20 {
		quotes, err := dev.Quote(t.Context(), k, []byte("n"), []nodeclaim.Selection{sel})
		if errors.Is(err, tpmdev.ErrUnsteady) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := quote.Verify(key, quotes[0].Evidence, []byte("n"), sel); err != nil {
			t.Error(err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestWrongRequestsAreRefused(t *testing.T) {
	dev := open(t, tpmtest.Start(t), tpmdev.Options{})
	ctx := t.Context()
	k, err := dev.AK(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, call := range map[string]func() error{
		"a quote over no PCR": func() error {
			_, err := dev.Quote(ctx, k, []byte("n"), []nodeclaim.Selection{{Bank: nodeclaim.SHA256}})
			return err
		},
		"reading an unknown bank": func() error {
			_, err := dev.PCRRead(ctx, nodeclaim.Selection{Bank: 1, PCRs: []int{0}})
			return err
		},
		"extending PCR 24":             func() error { return dev.PCRExtend(ctx, 24, nil) },
		"extending with a short value": func() error { return dev.PCRExtend(ctx, 16, map[nodeclaim.HashAlg][]byte{nodeclaim.SHA256: {1}}) },
		"a tag in the platform's range": func() error {
			return dev.ProvisionTag(ctx, 0x01400000, [assettag.DigestSize]byte{})
		},
		"a credential that is garbage": func() error { _, err := dev.Activate(ctx, k, []byte("blob"), []byte("secret")); return err },
	} {
		t.Run(name, func(t *testing.T) {
			if err := call(); err == nil {
				t.Error("no error")
			}
		})
	}
}

// Root has the owner's authorisation: it can define the index with other attributes, and
// write what it likes. Both are certified by the TPM as what they are.
func TestThreat21_TagOfARealTPMThatRootRewroteIsRefused(t *testing.T) {
	path := tpmtest.Start(t)
	ca := manufacture(t, path, "L-2")
	dev := open(t, path, tpmdev.Options{})
	id := identity(t, dev, ca)
	k, err := dev.AK(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := assettag.Sign(assettag.Document{
		Tags: map[string]string{"country": "DE"}, EKHashes: []string{id.Hash().String()}, Serial: 1,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, private, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	const index = assettag.DefaultIndex
	check := func(want string) {
		t.Helper()
		cert, err := dev.CertifyTag(t.Context(), k, []byte("n"), index)
		if err != nil {
			t.Fatal(err)
		}
		_, err = assettag.Verify(assettag.Evidence{Document: signed, Attest: cert.Attest, Signature: cert.Signature},
			assettag.Expected{Key: parseAK(t, k), Nonce: []byte("n"), EK: id.Hash(), Signers: anyKeys(public), Now: time.Now(), Index: index})
		var r *nodeclaim.Refusal
		if want == "" && err != nil || want != "" && (!errors.As(err, &r) || r.Check != want) {
			t.Errorf("error is %v, want check %q", err, want)
		}
	}
	defineOtherwise(t, path, index, assettag.Digest(signed))
	check("tag.index")
	if err := dev.ProvisionTag(t.Context(), index, [assettag.DigestSize]byte{1}); err != nil {
		t.Fatal(err)
	}
	check("tag.digest")
	if err := dev.ProvisionTag(t.Context(), index, assettag.Digest(signed)); err != nil {
		t.Fatal(err)
	}
	check("")
}

// defineOtherwise writes the right digest to an index that anybody may write.
func defineOtherwise(t *testing.T, path string, index uint32, digest [assettag.DigestSize]byte) {
	t.Helper()
	tpm, err := linuxudstpm.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	area := assettag.NVPublic(index, assettag.NVDefined)
	area.Attributes.AuthWrite = true
	if _, err := (tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: tpm2.New2B(area)}).Execute(tpm); err != nil {
		t.Fatal(err)
	}
	name, err := tpm2.NVName(&area)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tpm2.NVWrite{AuthHandle: owner, NVIndex: tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: *name}, Data: tpm2.TPM2BMaxNVBuffer{Buffer: digest[:]}}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
}
