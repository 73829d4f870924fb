package bench

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keelson-project/keelson/nodeattestor/ak"
	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// agentAnswers is what an agent that keeps its AK asks of its TPM for one attestation (EK, AK and banks for the payload; activation and
// quote for the response), against the time that the TPM itself takes for the same commands. The latter is seen from between the
// two, in runs of their own, for standing there takes time as well.
func agentAnswers(b *testing.B) figure {
	path := tpmtest.Start(b)
	ca := must(tpmtest.NewCA())(b)
	if err := tpmtest.Manufacture(b.Context(), path, ca); err != nil {
		b.Fatal(err)
	}
	var inTPM, commands atomic.Int64
	between := tpmtest.Between(b, path, func(command []byte, forward tpmtest.Forward) []byte {
		begun := time.Now()
		response := forward(command)
		inTPM.Add(int64(time.Since(begun)))
		commands.Add(1)
		return response
	})
	dir := b.TempDir()
	wall := dialogues(b, path, ca, dir, func() {})
	var tpms []time.Duration
	dialogues(b, between, ca, dir, func() {
		tpms = append(tpms, time.Duration(inTPM.Swap(0)))
	})
	return promise("agent's dialogue with its TPM / the TPM's own time for it", float64(wall)/float64(median(tpms)), 1.15, "x",
		fmt.Sprintf("%d commands each, %v and %v", commands.Load()/int64(len(tpms)), wall, median(tpms)))
}

// dialogues is the median time of some dialogues with the TPM at a socket.
func dialogues(b *testing.B, path string, ca *tpmtest.CA, dir string, after func()) time.Duration {
	ctx := b.Context()
	dev := must(tpmdev.OpenContext(ctx, path, tpmdev.Options{}))(b)
	defer func() {
		if err := dev.Close(); err != nil {
			b.Error(err)
		}
	}()
	id, key := known(b, dev, ca, dir)
	secret, nonce := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	var walls []time.Duration
	for range 25 {
		blob, encrypted, err := ak.Challenge(id, key, secret, rand.Reader) // the server's work
		if err != nil {
			b.Fatal(err)
		}
		begun := time.Now()
		must(dev.Endorsement(ctx))(b)
		k := must(dev.AK(ctx, dir))(b)
		must(dev.Banks(ctx))(b)
		if got := must(dev.Activate(ctx, k, blob, encrypted))(b); !bytes.Equal(got, secret) {
			b.Fatal("another secret")
		}
		must(dev.Quote(ctx, k, nonce, []nodeclaim.Selection{selection}))(b)
		walls = append(walls, time.Since(begun))
		after()
	}
	return median(walls)
}

// known is what a server knows of the agent's TPM by the time of its challenge. The AK is made here, so that it is kept afterwards.
func known(b *testing.B, dev *tpmdev.Device, ca *tpmtest.CA, dir string) (ek.Identity, ak.Key) {
	e := must(dev.Endorsement(b.Context()))(b)
	k := must(dev.AK(b.Context(), dir))(b)
	id := must(ek.Verify(e.Certs, e.Public, ek.Anchors{Roots: []*x509.Certificate{ca.Root()}, Mode: ek.Certificate}, time.Now()))(b)
	return id, must(ak.Parse(k.Public))(b)
}
