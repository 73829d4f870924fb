package reference_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/reference"
	"github.com/keelson-project/keelson/test/vectors"
)

// record is one event of a crypto-agile log with one sha256 digest, as a node may rewrite it.
type record struct {
	pcr, typ     uint32
	digest, data []byte
}

// split takes a log apart; head is its first event, which announces the digests.
func split(t testing.TB, raw []byte) (head []byte, records []record) {
	t.Helper()
	word := binary.LittleEndian.Uint32
	n := 32 + int(word(raw[28:]))
	head, raw = raw[:n], raw[n:]
	for len(raw) > 0 {
		if word(raw[8:]) != 1 || binary.LittleEndian.Uint16(raw[12:]) != 0xB {
			t.Fatal("an event does not have exactly one sha256 digest")
		}
		end := 50 + int(word(raw[46:]))
		records = append(records, record{word(raw), word(raw[4:]), raw[14:46], raw[50:end]})
		raw = raw[end:]
	}
	return head, records
}

func join(head []byte, records []record) []byte {
	out := bytes.Clone(head)
	for _, r := range records {
		out = binary.LittleEndian.AppendUint32(out, r.pcr)
		out = binary.LittleEndian.AppendUint32(out, r.typ)
		out = append(binary.LittleEndian.AppendUint32(out, 1), 0xB, 0)
		out = binary.LittleEndian.AppendUint32(append(out, r.digest...), uint32(len(r.data)))
		out = append(out, r.data...)
	}
	return out
}

// shuffled has the records in another order in which each PCR's own order is kept, as replay demands.
func shuffled(rng *rand.Rand, records []record) []record {
	queues := map[uint32][]record{}
	var order []uint32
	for _, r := range records {
		queues[r.pcr] = append(queues[r.pcr], r)
		order = append(order, r.pcr)
	}
	rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	out := make([]record, 0, len(records))
	for _, pcr := range order {
		out = append(out, queues[pcr][0])
		queues[pcr] = queues[pcr][1:]
	}
	return out
}

// A node that did not boot what is pinned may order the events of different PCRs as it likes, name
// their types as it likes, write data beside them that the good machine had, and log a PCR's events in
// another one: no set of components takes it for the good one, and the good machine is not refused for
// the order in which its firmware logs.
func TestThreat08_NoRewrittenLogMakesAnotherBootTheGoodOne(t *testing.T) {
	const noAction = 3
	var components []string
	for line := range strings.Lines(string(capture(t, "good").Marshal())) {
		if key := strings.TrimSpace(line); !strings.HasPrefix(key, `"`) || strings.HasPrefix(key, `"2":`) {
			components = append(components, line)
		}
	}
	set, err := reference.ParseSet([]byte(strings.Join(components, "")))
	if err != nil {
		t.Fatal(err)
	}
	_, goodRecords := split(t, vectors.Read(t, "good", vectors.EventLog))
	for _, boot := range []string{"good", "cmdline", "secureboot-on", "ima-payload-a"} {
		t.Run(boot, func(t *testing.T) {
			ev := evidence(t, boot)
			head, records := split(t, vectors.Read(t, boot, vectors.EventLog))
			if !bytes.Equal(join(head, records), vectors.Read(t, boot, vectors.EventLog)) {
				t.Fatal("the log does not survive being taken apart")
			}
			replayed := 0
			for seed := range uint64(300) {
				rng := rand.New(rand.NewPCG(seed, 1))
				lie := shuffled(rng, records)
				for i := range lie {
					switch rng.IntN(6) {
					case 0:
						if lie[i].typ != noAction {
							lie[i].typ = goodRecords[rng.IntN(len(goodRecords))].typ
						}
					case 1:
						if boot != "good" && seed%3 == 0 {
							lie[i].data = goodRecords[rng.IntN(len(goodRecords))].data
						}
					case 2:
						if seed%5 == 0 {
							lie[i].pcr = uint32(rng.IntN(16))
						}
					}
				}
				b, err := eventlog.Replay(join(head, lie), ev.PCRs)
				if err != nil {
					continue // refused earlier
				}
				replayed++
				b = b.ConfirmCommandLine(string(vectors.Read(t, "good", "cmdline.txt")))
				got := set.Check(reference.Evidence{Boot: b, PCRs: ev.PCRs, IMA: ev.IMA}, now)
				if (len(got) == 0) != (boot == "good") {
					t.Fatalf("seed %d: refusals %v", seed, got)
				}
			}
			if replayed == 0 {
				t.Error("no rewritten log replayed, so nothing was tried")
			}
			t.Logf("%d of 300 rewritten logs replayed", replayed)
		})
	}
}
