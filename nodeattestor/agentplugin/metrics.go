package agentplugin

import (
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/spiffe/spire-plugin-sdk/pluginsdk"

	"github.com/keelson-project/keelson/nodeattestor/pluginmetrics"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
)

// metrics is what the plugin counts. Whether the server accepted is SPIRE's to tell: an agent plugin does not learn it.
type metrics struct {
	*pluginmetrics.Set
	attestations *pluginmetrics.Counter
	phases       *pluginmetrics.Distribution
}

var _ pluginsdk.NeedsHostServices = (*Plugin)(nil)

// BrokerHostServices is called by SPIRE's framework when the plugin is loaded.
func (p *Plugin) BrokerHostServices(broker pluginsdk.ServiceBroker) error {
	p.metrics.Host(broker)
	return nil
}

func newMetrics(p *Plugin) *metrics {
	s := pluginmetrics.New("keelson_tpm", p.unready)
	return &metrics{
		Set:          s,
		attestations: s.Counter("attestations", "Attestations by result: answered (every question of the server) or failed (no evidence).", "result"),
		phases:       s.Seconds("phase_seconds", "How long the phases took that came to their end: open (TPM and attestation key), payload, answer (activation, quotes, first part of the logs), chunk (a further part of a log).", "phase"),
	}
}

// timed runs one phase and notes how long it took, if it succeeded.
func timed[T any](m *metrics, phase string, f func() (T, error)) (T, error) {
	begun := time.Now()
	v, err := f()
	if err == nil {
		m.phases.Observe(time.Since(begun).Seconds(), phase)
	}
	return v, err
}

// unready tells in words why the plugin could not answer a server now: nothing when it could. It sends the TPM no command.
func (p *Plugin) unready() []string {
	p.mu.RLock()
	c := p.config
	p.mu.RUnlock()
	if c == nil {
		return []string{"no configuration is in force"}
	}
	var reasons []string
	if err := tpmdev.CheckPath(c.tpm); err != nil {
		reasons = append(reasons, "tpm: "+err.Error())
	}
	for _, path := range []string{c.eventLog, c.imaLog, c.tagDocument, c.tokenPath} {
		if path == "" {
			continue
		}
		f, err := os.Open(path)
		if path == c.imaLog && errors.Is(err, fs.ErrNotExist) {
			continue // a machine without IMA says so, and the server decides
		}
		if err != nil {
			reasons = append(reasons, err.Error())
			continue
		}
		_ = f.Close() // nothing was written
	}
	return reasons
}

// Close ends what the plugin counts.
func (p *Plugin) Close() error { return p.metrics.Close() }
