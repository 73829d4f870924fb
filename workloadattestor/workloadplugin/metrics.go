package workloadplugin

import (
	"errors"
	"net"
	"strings"
	"time"

	"github.com/spiffe/spire-plugin-sdk/pluginsdk"

	"github.com/keelson-project/keelson/nodeattestor/pluginmetrics"
	"github.com/keelson-project/keelson/workloadattestor/pod"
	"github.com/keelson-project/keelson/workloadattestor/runtime"
)

// metrics is what the plugin counts. Label values are this program's own words and the names of configured verifiers,
// never what a workload or a registry said.
type metrics struct {
	*pluginmetrics.Set
	attestations *pluginmetrics.Counter
	absent       *pluginmetrics.Counter
	took         *pluginmetrics.Distribution
}

var _ pluginsdk.NeedsHostServices = (*Plugin)(nil)

// BrokerHostServices is called by SPIRE's framework when the plugin is loaded.
func (p *Plugin) BrokerHostServices(broker pluginsdk.ServiceBroker) error {
	p.metrics.Host(broker)
	return nil
}

func newMetrics(p *Plugin) *metrics {
	s := pluginmetrics.New("keelson", p.unready)
	return &metrics{
		Set: s,
		attestations: s.Counter("attestations", "Attestations by result: attested, none (in no container of this node's runtime, or no pod of this node), "+
			"refused (evidence that contradicts itself) or unavailable (something could not be asked).", "result"),
		absent: s.Counter("absent", "Proofs that were missing from attested processes: sa, image, runtime (a path of the node is mounted), or signed-by:<verifier>.", "proof"),
		took:   s.Seconds("attestation_seconds", "How long attestations took, by result.", "result"),
	}
}

// count counts one attestation.
func (m *metrics) count(out outcome, err error, took time.Duration) {
	result := "attested"
	switch {
	case errors.Is(err, errRefused):
		result = "refused"
	case errors.Is(err, pod.ErrNotFound), errors.Is(err, runtime.ErrNoPod):
		result = "none"
	case err != nil:
		result = "unavailable"
	case out.notOurs != nil:
		result = "none"
	}
	m.attestations.Inc(result)
	m.took.Observe(took.Seconds(), result)
	for _, reason := range out.absent {
		m.absent.Inc(proofOf(reason))
	}
}

// proofOf is the proof that a reason is about: what stands before its first ": ".
func proofOf(reason string) string {
	proof, _, _ := strings.Cut(reason, ": ")
	return proof
}

// dialTimeout bounds how long readiness waits for the runtime's socket, which is on this machine.
const dialTimeout = time.Second

// unready tells in words why the plugin could attest nothing now: nothing when it could.
func (p *Plugin) unready() []string {
	a := p.acquire()
	if a == nil {
		return []string{"no configuration is in force"}
	}
	defer p.release(a)
	conn, err := net.DialTimeout("unix", a.socket, dialTimeout)
	if err != nil {
		return []string{"cri_socket: the container runtime does not answer: " + err.Error()}
	}
	_ = conn.Close() // nothing was sent
	return nil
}
