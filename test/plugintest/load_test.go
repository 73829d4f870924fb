package plugintest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	serverv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-project/keelson/nodeattestor/ak"
	"github.com/keelson-project/keelson/nodeattestor/audit"
	"github.com/keelson-project/keelson/nodeattestor/ek"
	"github.com/keelson-project/keelson/nodeattestor/eventlog"
	"github.com/keelson-project/keelson/nodeattestor/evidence"
	"github.com/keelson-project/keelson/nodeattestor/ima"
	"github.com/keelson-project/keelson/nodeattestor/nodeclaim"
	"github.com/keelson-project/keelson/test/tpmtest"
)

// softBoot is the logs of one boot that many machines have had, and the PCRs that it leads to.
type softBoot struct {
	log, list []byte
	line      string
	values    [][]byte // of quoted.PCRs

	mu     sync.Mutex
	chunks map[string]*evidence.Chunk // by log and offset: hundreds of machines send the same
}

func newSoftBoot(t testing.TB, entries int) *softBoot {
	t.Helper()
	b := &softBoot{log: recorded(t, "binary_bios_measurements"), list: recorded(t, "binary_runtime_measurements"),
		line: strings.TrimSpace(string(recorded(t, "cmdline.txt"))), chunks: map[string]*evidence.Chunk{}}
	for i := range entries {
		b.list = append(b.list, tpmtest.IMAEntry(fmt.Sprintf("/usr/lib/x86_64-linux-gnu/package-%06d/program", i), binary.BigEndian.AppendUint32(nil, uint32(i)))...)
	}
	values := must2(must2(eventlog.Parse(b.log))(t).Unverified(nodeclaim.SHA256))(t)
	all := ima.Unverified(b.list, nodeclaim.SHA256, ima.Options{})
	values[10] = all[len(all)-1]
	for _, i := range quoted.PCRs {
		b.values = append(b.values, values[i])
	}
	return b
}

func (b *softBoot) chunk(kind evidence.LogKind, offset uint64) (*evidence.Chunk, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	raw := b.list
	if kind == evidence.EventLog {
		raw = b.log
	}
	at := fmt.Sprint(kind, offset)
	if b.chunks[at] == nil {
		from := min(int(offset), len(raw))
		end := min(from+evidence.MaxChunkRaw, len(raw))
		c, err := evidence.NewChunk(kind, offset, raw[from:end], end == len(raw))
		if err != nil {
			return nil, err
		}
		b.chunks[at] = c
	}
	return b.chunks[at], nil
}

// softMachine is a node whose TPM is software in this process: what a server bears needs more machines than a test can have TPMs.
type softMachine struct {
	boot *softBoot
	ek   *tpmtest.SoftEK
	ak   *tpmtest.SoftAK
	name []byte // of the AK
	cert [][]byte
	hash string
}

func newSoftMachine(t testing.TB, ca *tpmtest.CA, boot *softBoot) *softMachine {
	t.Helper()
	m := &softMachine{boot: boot, ek: must2(tpmtest.NewSoftEK())(t), ak: must2(tpmtest.NewSoftAK())(t)}
	m.cert = [][]byte{must2(ca.IssueEK(m.ek.Key.Public(), tpmtest.EKOptions{}))(t), ca.Issuer().Raw}
	m.hash = must2(ek.HashKey(m.ek.Key.Public()))(t).String()
	m.name = must2(ak.Parse(m.ak.Public()))(t).Name()
	return m
}

func (m *softMachine) payload() ([]byte, error) {
	return (&evidence.Payload{EKCertificates: m.cert, AKPublic: m.ak.Public(), Banks: []nodeclaim.HashAlg{nodeclaim.SHA256}, HasEventLog: true, HasIMA: true}).Marshal()
}

// answer is the response to a challenge; without a log's chunk where it is left out.
func (m *softMachine) answer(challenge []byte, logs ...evidence.LogKind) ([]byte, error) {
	c, err := evidence.ParseChallenge(challenge)
	if err != nil {
		return nil, err
	}
	secret, err := m.ek.Activate(c.CredentialBlob, c.EncryptedSecret, m.name)
	if err != nil {
		return nil, err
	}
	composite := sha256.Sum256(bytes.Join(m.boot.values, nil))
	a := tpmtest.QuoteAttest(c.Nonce, composite[:], tpmtest.Select(nodeclaim.SHA256, quoted.PCRs...))
	qualified := sha256.Sum256(append(binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHEndorsement)), m.name...))
	a.QualifiedSigner = tpm2.TPM2BName{Buffer: append([]byte{0, 0x0b}, qualified[:]...)}
	msg := tpm2.Marshal(a)
	signature, err := m.ak.Sign(msg)
	if err != nil {
		return nil, err
	}
	r := &evidence.Response{Secret: secret, Quotes: []evidence.Quote{{Bank: nodeclaim.SHA256, Attest: msg, Signature: signature, Values: m.boot.values}}, CommandLine: m.boot.line}
	for _, kind := range logs {
		offset := uint64(0)
		if kind == evidence.IMALog {
			offset = c.IMAOffset
		}
		chunk, err := m.boot.chunk(kind, offset)
		if err != nil {
			return nil, err
		}
		r.Chunks = append(r.Chunks, *chunk)
	}
	return r.Marshal()
}

// begin opens a stream, sends the payload and returns the challenge.
func (m *softMachine) begin(ctx context.Context, s *server) (serverv1.NodeAttestor_AttestClient, []byte, error) {
	stream, err := s.client.Attest(ctx)
	if err != nil {
		return nil, nil, err
	}
	payload, err := m.payload()
	if err != nil {
		return nil, nil, err
	}
	if err := stream.Send(&serverv1.AttestRequest{Request: &serverv1.AttestRequest_Payload{Payload: payload}}); err != nil && !errors.Is(err, io.EOF) { // then Recv says more
		return nil, nil, err
	}
	resp, err := stream.Recv()
	if err != nil {
		return nil, nil, err
	}
	return stream, resp.GetChallenge(), nil
}

// say sends an answer to a challenge. To a stream that the server has ended, Send says io.EOF and Recv how it was ended.
func say(stream serverv1.NodeAttestor_AttestClient, data []byte) error {
	err := stream.Send(&serverv1.AttestRequest{Request: &serverv1.AttestRequest_ChallengeResponse{ChallengeResponse: data}})
	for errors.Is(err, io.EOF) {
		if _, end := stream.Recv(); end != nil {
			return end
		}
	}
	return err
}

// attest is an honest and quick attestation.
func (m *softMachine) attest(ctx context.Context, s *server) (*serverv1.AgentAttributes, error) {
	stream, challenge, err := m.begin(ctx, s)
	if err != nil {
		return nil, err
	}
	data, err := m.answer(challenge, evidence.EventLog, evidence.IMALog)
	for {
		if err == nil {
			err = say(stream, data)
		}
		if err != nil {
			return nil, err
		}
		resp, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if a := resp.GetAgentAttributes(); a != nil {
			return a, nil
		}
		next, err := evidence.ParseContinue(resp.GetChallenge())
		if err != nil {
			return nil, err
		}
		chunk, err := m.boot.chunk(next.Log, next.Offset)
		if err != nil {
			return nil, err
		}
		if data, err = chunk.Marshal(); err != nil {
			return nil, err
		}
	}
}

// highWater samples the process's heap until stop, which gives the highest above what it was, in bytes.
func highWater() (stop func() uint64) {
	read := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	runtime.GC()
	begin := read()
	highest := begin
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			highest = max(highest, read())
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() uint64 {
		close(done)
		<-ended
		return highest - begin
	}
}

// Strangers that begin and never go on, proved machines that hold a place and send nothing, one machine that opens many streams, and 200
// honest ones at once, through the server plugin's own gRPC. The honest ones are all let in, in bounded memory and time.
func TestThreat24_SlowClientsAndManyAtOnceKeepNobodyOut(t *testing.T) {
	const (
		honest  = 200
		silent  = 90              // of the 128 that may wait for a proof
		stuck   = 4               // of the 8 that may work
		entries = 10000           // 1.3 MiB a machine, 270 in all
		timeout = 2 * time.Minute // far above what is needed, on a busy machine too
		memory  = 192 << 20
	)
	ca := must2(tpmtest.NewCA())(t)
	boot := newSoftBoot(t, entries)
	real := newMachine(t, ca, "good").serve(t, "")
	newNode(t, "load-real")
	inventory := map[string][]string{"load-real": real.ekHex}
	machine := func(kind string, i int) *softMachine {
		m := newSoftMachine(t, ca, boot)
		name := fmt.Sprintf("load-%s-%d", kind, i)
		newNode(t, name)
		inventory[name] = []string{m.hash}
		return m
	}
	var machines, slow []*softMachine
	for i := range honest {
		machines = append(machines, machine("honest", i))
	}
	for i := range stuck {
		slow = append(slow, machine("stuck", i))
	}
	greedy := machine("greedy", 0)
	set := bytes.Replace(real.capture(t, "good"), []byte("\n  violations:"), []byte("\n  ignoreDirectories: [/usr]\n  violations:"), 1)
	s := newServer(t, serverOptions{ca: ca, reference: set, inventory: inventory, extra: fmt.Sprintf("max_parallel = 8\nattestation_timeout = %q\n", timeout)})
	ctx, cancel := context.WithTimeout(t.Context(), 2*timeout)
	defer cancel()

	// Strangers' machines, certified, which prove nothing; and proved ones, which send no logs.
	idle, goHome := context.WithCancel(ctx)
	defer goHome()
	begun := time.Now()
	for range silent {
		_, _, err := newSoftMachine(t, ca, boot).begin(idle, s)
		check(t, err)
	}
	for _, m := range slow {
		stream, challenge, err := m.begin(idle, s)
		check(t, err)
		check(t, say(stream, must2(m.answer(challenge))(t)))
		must2(stream.Recv())(t) // it is asked for its logs
	}

	stop := highWater()
	var all sync.WaitGroup
	var mu sync.Mutex
	var refusals []error
	var replaced, longest = 0, time.Duration(0)
	all.Go(func() { // one machine, thirty streams
		var streams sync.WaitGroup
		for range 30 {
			streams.Go(func() {
				_, err := greedy.attest(ctx, s)
				mu.Lock()
				defer mu.Unlock()
				if err != nil && strings.Contains(err.Error(), "began another attestation") {
					replaced++
				} else if err != nil {
					refusals = append(refusals, fmt.Errorf("greedy: %w", err))
				}
			})
		}
		streams.Wait()
	})
	for _, m := range machines {
		all.Go(func() {
			began := time.Now()
			_, err := m.attest(ctx, s)
			mu.Lock()
			defer mu.Unlock()
			if longest = max(longest, time.Since(began)); err != nil {
				refusals = append(refusals, err)
			}
		})
	}
	_, err := attest(t, real, s, nil)
	check(t, err)
	all.Wait()
	took, peak := time.Since(begun), stop()
	t.Logf("%d machines with %d IMA entries each were let in within %v, the slowest in %v, beside %d silent and %d stuck ones; heap at most %d MiB more; of one machine's 30 streams %d were replaced",
		honest, entries, took.Round(time.Millisecond), longest.Round(time.Millisecond), silent, stuck, peak>>20, replaced)
	for _, err := range refusals {
		t.Errorf("an honest machine was kept out: %v", err)
	}
	if took > timeout {
		t.Errorf("it took %v, as long as the slow ones may", took)
	}
	if peak > memory {
		t.Errorf("the heap grew by %d MiB, allowed are %d", peak>>20, memory>>20)
	}
	for _, m := range append(machines, greedy) {
		for name, hashes := range inventory {
			if hashes[0] == m.hash {
				nodeTrust(t, name, trusted)
			}
		}
	}
	goHome()
	for i := range stuck { // a stream that was cut proves nothing against a machine
		noNodeTrust(t, fmt.Sprintf("load-stuck-%d", i))
	}
	if _, err := attest(t, real, s, nil); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	whole(t, s.file("audit.jsonl"))
}

// Who holds a place and sends nothing is sent away in time, before the proof and after it, and that proves nothing against the machine.
func TestThreat24_SlowClientsAreSentAwayInTime(t *testing.T) {
	const timeout = 3 * time.Second
	ca := must2(tpmtest.NewCA())(t)
	boot := newSoftBoot(t, 1)
	silent, stuck := newSoftMachine(t, ca, boot), newSoftMachine(t, ca, boot)
	newNode(t, "slow-silent")
	newNode(t, "slow-stuck")
	golden := newMachine(t, ca, "good")
	s := newServer(t, serverOptions{ca: ca, reference: golden.capture(t, "good"), inventory: map[string][]string{"slow-silent": {silent.hash}, "slow-stuck": {stuck.hash}},
		extra: fmt.Sprintf("max_parallel = 1\nattestation_timeout = %q\n", timeout)})
	for name, m := range map[string]*softMachine{"slow-silent": silent, "slow-stuck": stuck} {
		t.Run(name, func(t *testing.T) {
			stream, challenge, err := m.begin(t.Context(), s)
			check(t, err)
			if m == stuck {
				check(t, say(stream, must2(m.answer(challenge))(t)))
				must2(stream.Recv())(t) // it is asked for its logs
			}
			began := time.Now()
			_, err = stream.Recv()
			if status.Code(err) != codes.Unavailable || time.Since(began) > 10*timeout {
				t.Errorf("after %v: %v, want Unavailable after %v", time.Since(began), err, timeout)
			}
			noNodeTrust(t, name)
			lines := s.audit(t)
			if last := lines[len(lines)-1]; last.Outcome != audit.Inconclusive {
				t.Errorf("audit line %+v", last)
			}
		})
	}
}
