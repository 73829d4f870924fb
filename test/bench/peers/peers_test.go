// Package peers compares the replay of event logs with google/go-eventlog's, on the logs that it
// carries. It is a module of its own, so that nothing of the project depends on a peer.
package peers

import (
	"crypto"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-eventlog/extract"
	pb "github.com/google/go-eventlog/proto/state"
	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/nodeattestor/quote"
	"github.com/keelson-project/keelson/test/vectors"
)

// log is one that both sides can replay.
type log struct {
	name   string
	raw    []byte
	quoted quote.PCRs
	bank   register.PCRBank
	loader extract.Bootloader // GRUB where the peer reads its measurements too
}

func ours(l log) error {
	_, err := eventlog.Replay(l.raw, l.quoted)
	return err
}

func theirs(l log) error {
	events, err := tcg.ParseAndReplay(l.raw, l.bank.MRs(), tcg.ParseOpts{})
	if err != nil {
		return err
	}
	_, err = extract.FirmwareLogState(events, crypto.SHA256, extract.TPMRegisterConfig, extract.Opts{Loader: l.loader})
	return err
}

func logs(b *testing.B) (both []log) {
	for _, dir := range vectors.RealLogs(b) {
		l := log{name: dir, raw: vectors.RealLog(b, vectors.Expect(b, dir)), bank: register.PCRBank{TCGHashAlgo: pb.HashAlgo_SHA256}}
		parsed, err := eventlog.Parse(l.raw)
		if err != nil {
			continue
		}
		values, err := parsed.Unverified(nodeclaim.SHA256)
		if err != nil {
			continue
		}
		l.quoted = vectors.Quote(b, map[nodeclaim.HashAlg]map[int][]byte{nodeclaim.SHA256: values})
		for i, v := range values {
			l.bank.PCRs = append(l.bank.PCRs, register.PCR{Index: i, Digest: v, DigestAlg: crypto.SHA256})
		}
		if err := ours(l); err != nil {
			fmt.Printf("%s: left out, ours: %v\n", dir, err)
			continue
		}
		if l.loader = extract.GRUB; theirs(l) != nil {
			l.loader = extract.UnsupportedLoader
		}
		if err := theirs(l); err != nil {
			fmt.Printf("%s: left out, go-eventlog: %q\n", dir, err)
			continue
		}
		both = append(both, l)
	}
	return both
}

// BenchmarkOurs is ours alone, for profiles.
func BenchmarkOurs(b *testing.B) {
	all := logs(b)
	for b.Loop() {
		for _, l := range all {
			if err := ours(l); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkReplayAndFacts prints the ratio for each log: below 1 is faster than the peer.
func BenchmarkReplayAndFacts(b *testing.B) {
	for _, l := range logs(b) {
		var a, t []time.Duration
		for range 41 {
			a, t = append(a, timed(b, l, ours)), append(t, timed(b, l, theirs))
		}
		slices.Sort(a)
		slices.Sort(t)
		fmt.Printf("%-60s %7d bytes: ours %v, go-eventlog %v, ratio %.2f\n", l.name, len(l.raw), a[len(a)/2], t[len(t)/2], float64(a[len(a)/2])/float64(t[len(t)/2]))
	}
	for b.Loop() { // everything was measured above
	}
}

func timed(b *testing.B, l log, f func(log) error) time.Duration {
	start := time.Now()
	if err := f(l); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}
