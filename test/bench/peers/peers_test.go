// Package peers compares the replay of event logs with google/go-eventlog's and google/go-attestation's,
// on the logs that go-eventlog carries. It is a module of its own, so that nothing of the project depends on a peer.
package peers

import (
	"crypto"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-attestation/attest"
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
	pcrs   []attest.PCR
	loader extract.Bootloader // GRUB where the peer reads its measurements too
}

func ours(l log) error {
	_, err := eventlog.Replay(l.raw, l.quoted)
	return err
}

// peers replay a log and read facts from it, each as far as it does.
var peers = []struct {
	name   string
	replay func(log) error
}{{"go-eventlog", goEventlog}, {"go-attestation", goAttestation}}

// goAttestation replays and reads the state of Secure Boot, which is all that it knows of a log. It refuses some real logs there.
func goAttestation(l log) error {
	parsed, err := attest.ParseEventLog(l.raw)
	if err != nil {
		return err
	}
	events, err := parsed.Verify(l.pcrs)
	if err != nil {
		return err
	}
	_, err = attest.ParseSecurebootState(events)
	return err
}

func goEventlog(l log) error {
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
			l.pcrs = append(l.pcrs, attest.PCR{Index: i, Digest: v, DigestAlg: crypto.SHA256})
			l.bank.PCRs = append(l.bank.PCRs, register.PCR{Index: i, Digest: v, DigestAlg: crypto.SHA256})
		}
		if err := ours(l); err != nil {
			fmt.Printf("%s: left out, ours: %v\n", dir, err)
			continue
		}
		if l.loader = extract.GRUB; goEventlog(l) != nil {
			l.loader = extract.UnsupportedLoader
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

// figure is one line of the table.
type figure struct {
	Log    string  `json:"log"`
	Peer   string  `json:"peer"`
	Bytes  int     `json:"bytes"`
	Ours   float64 `json:"oursMicroseconds"`
	Theirs float64 `json:"theirsMicroseconds"`
	Ratio  float64 `json:"ratio"`
}

// BenchmarkReplayAndFacts prints the ratio for each log and peer, and writes the same as JSON into the file that
// KEELSON_BENCH_JSON names. The promise is to be faster, so a ratio of 1 or more is a failure.
func BenchmarkReplayAndFacts(b *testing.B) {
	var table []figure
	fmt.Printf("\n%-60s %8s %-16s %10s %10s %6s\n", "log", "bytes", "peer", "ours", "theirs", "ratio")
	for _, l := range logs(b) {
		for _, peer := range peers {
			if err := peer.replay(l); err != nil {
				fmt.Printf("%-60s %8d %-16s left out: %.60q\n", l.name, len(l.raw), peer.name, err)
				continue
			}
			var a, t []time.Duration
			for range 41 {
				a, t = append(a, timed(b, l, ours)), append(t, timed(b, l, peer.replay))
			}
			slices.Sort(a)
			slices.Sort(t)
			o, p := a[len(a)/2], t[len(t)/2]
			f := figure{l.name, peer.name, len(l.raw), float64(o.Nanoseconds()) / 1e3, float64(p.Nanoseconds()) / 1e3, float64(o) / float64(p)}
			table = append(table, f)
			fmt.Printf("%-60s %8d %-16s %10v %10v %6.2f\n", l.name, len(l.raw), peer.name, o, p, f.Ratio)
			if f.Ratio >= 1 {
				b.Errorf("%s: not faster than %s: ratio %.2f", l.name, peer.name, f.Ratio)
			}
		}
	}
	if len(table) == 0 {
		b.Fatal("no log was compared")
	}
	if file := os.Getenv("KEELSON_BENCH_JSON"); file != "" {
		data, err := json.MarshalIndent(table, "", "  ")
		if err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(filepath.Clean(file), append(data, '\n'), 0o600); err != nil {
			b.Fatal(err)
		}
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
