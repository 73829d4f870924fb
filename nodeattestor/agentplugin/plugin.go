// Package agentplugin is the SPIRE agent plugin: it reads the machine's TPM and logs and
// answers the server's challenges. It decides nothing; everything that it sends is
// evidence, which the server trusts only as far as the TPM vouches for it.
package agentplugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/nodeattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keelson-project/keelson/nodeattestor/pluginconf"
	"github.com/keelson-project/keelson/nodeattestor/pluginmetrics"
	"github.com/keelson-project/keelson/nodeattestor/tpmdev"
)

// hclConfig is the plugin_data block as people write it; README.md explains each key.
type hclConfig struct {
	TPM         string `hcl:"tpm"`
	DataDir     string `hcl:"data_dir"`
	EKTemplate  string `hcl:"ek_template"`
	AKType      string `hcl:"ak_type"`
	EventLog    string `hcl:"event_log"`
	IMALog      string `hcl:"ima_log"`
	SystemdLog  string `hcl:"systemd_log"`
	CommandLine string `hcl:"command_line"`
	TagDocument string `hcl:"tag_document"`
	TokenPath   string `hcl:"token_path"`
	Timeout     string `hcl:"timeout"`

	Metrics *pluginmetrics.Config `hcl:"metrics"`
}

// config is what the plugin works by: validated, and never changed once made.
type config struct {
	tpm, dataDir, ekTemplate      string
	akType                        tpmdev.AKType
	eventLog, imaLog, commandLine string
	systemdLog                    string
	tagDocument, tokenPath        string
	timeout                       time.Duration
	listen                        string // address of metrics and health, "" for none
	device                        *device
}

// Where Linux shows its TPM and its logs.
const (
	defaultTPM      = "/dev/tpmrm0"
	defaultEventLog = "/sys/kernel/security/tpm0/binary_bios_measurements"
	defaultIMALog   = "/sys/kernel/security/ima/binary_runtime_measurements"
	defaultCmdline  = "/proc/cmdline"
	// systemd-pcrextend(8) has this path.
	defaultSystemdLog = "/run/log/systemd/tpm2-measure.log"
	defaultTimeout    = 2 * time.Minute
)

func buildConfig(text string) (*config, *pluginconf.Problems) {
	raw := hclConfig{TPM: defaultTPM, EventLog: defaultEventLog, IMALog: defaultIMALog, SystemdLog: defaultSystemdLog, CommandLine: defaultCmdline}
	p := pluginconf.Decode(text, &raw)
	if p.Err() != nil {
		return nil, p
	}
	c := &config{device: &device{}, tpm: raw.TPM, dataDir: raw.DataDir, ekTemplate: raw.EKTemplate, eventLog: raw.EventLog,
		imaLog: raw.IMALog, systemdLog: raw.SystemdLog, commandLine: raw.CommandLine, tagDocument: raw.TagDocument, tokenPath: raw.TokenPath, timeout: defaultTimeout}
	c.listen = raw.Metrics.Address(p)
	var err error
	if c.akType, err = tpmdev.ParseAKType(raw.AKType); err != nil {
		p.Add("ak_type", "%v", err)
	}
	if c.dataDir == "" {
		p.Add("data_dir", "missing; the attestation key is kept there across restarts")
	}
	if err := tpmdev.CheckPath(c.tpm); err != nil {
		p.Add("tpm", "%v", err)
	}
	if c.tagDocument != "" {
		if _, err := os.Stat(c.tagDocument); err != nil {
			p.Add("tag_document", "%v", err)
		}
	}
	if c.tokenPath != "" {
		if _, err := os.Stat(c.tokenPath); err != nil {
			p.Add("token_path", "%v", err)
		}
	}
	if raw.Timeout != "" {
		d, err := time.ParseDuration(raw.Timeout)
		if err != nil || d <= 0 {
			p.Add("timeout", "%q is not a positive duration such as 2m", raw.Timeout)
		}
		c.timeout = d
	}
	return c, p
}

// Plugin serves SPIRE's agent-side NodeAttestor and Config services.
type Plugin struct {
	nodeattestorv1.UnimplementedNodeAttestorServer
	configv1.UnimplementedConfigServer

	log     hclog.Logger
	metrics *metrics

	configuring sync.Mutex // one configuration at a time
	mu          sync.RWMutex
	config      *config
}

var _ pluginsdk.NeedsLogger = (*Plugin)(nil)

// New makes a plugin that still has to be configured.
func New() *Plugin {
	p := &Plugin{log: hclog.NewNullLogger()}
	p.metrics = newMetrics(p)
	return p
}

// SetLogger is called by SPIRE's framework when the plugin is loaded.
func (p *Plugin) SetLogger(log hclog.Logger) { p.log = log }

// Validate reports every problem of a configuration.
func (p *Plugin) Validate(_ context.Context, req *configv1.ValidateRequest) (*configv1.ValidateResponse, error) {
	_, problems := buildConfig(req.HclConfiguration)
	return &configv1.ValidateResponse{Valid: problems.Err() == nil, Notes: problems.List()}, nil
}

// Configure puts a configuration in force, whole or not at all.
func (p *Plugin) Configure(_ context.Context, req *configv1.ConfigureRequest) (*configv1.ConfigureResponse, error) {
	c, problems := buildConfig(req.HclConfiguration)
	if err := problems.Err(); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "keelson_tpm: %v", err)
	}
	p.configuring.Lock()
	defer p.configuring.Unlock()
	door, err := p.metrics.Listen(c.listen)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "keelson_tpm: %v", err)
	}
	p.mu.Lock()
	p.config = c
	p.mu.Unlock()
	if err := door.Use(); err != nil {
		p.log.Warn("metrics", "error", err)
	}
	return &configv1.ConfigureResponse{}, nil
}

// AidAttestation sends the payload, then answers challenges until SPIRE closes the stream.
func (p *Plugin) AidAttestation(stream nodeattestorv1.NodeAttestor_AidAttestationServer) error {
	p.mu.RLock()
	c := p.config
	p.mu.RUnlock()
	if c == nil {
		return status.Error(codes.FailedPrecondition, "keelson_tpm: not configured")
	}
	ctx, cancel := context.WithTimeout(stream.Context(), c.timeout)
	defer cancel()
	n, err := timed(p.metrics, "open", func() (*node, error) { return openNode(ctx, c) })
	if err != nil {
		return p.fail(err)
	}
	if n.ak.New {
		p.log.Warn("a new attestation key was made; servers audit it and read the whole IMA log", "type", n.ak.Type(), "replaces", n.ak.Replaced, "data_dir", c.dataDir)
	}
	err = p.converse(ctx, stream, n)
	if err := errors.Join(err, n.close()); err != nil {
		return p.fail(err)
	}
	p.metrics.attestations.Inc("answered")
	return nil
}

func (p *Plugin) fail(err error) error {
	p.metrics.attestations.Inc("failed")
	p.log.Error("no evidence for the server", "error", err)
	return status.Errorf(codes.Internal, "keelson_tpm: %v", err)
}

// converse is the agent's half of the protocol of nodeattestor/doc.go.
func (p *Plugin) converse(ctx context.Context, stream nodeattestorv1.NodeAttestor_AidAttestationServer, n *node) error {
	payload, err := timed(p.metrics, "payload", func() ([]byte, error) { return n.payload(ctx) })
	if err != nil {
		return err
	}
	for _, why := range n.unusable {
		p.log.Warn("an EK certificate in the TPM cannot be used", "reason", why)
	}
	if n.lineErr != nil {
		p.log.Warn("the kernel's command line is not sent, so that no reason shows it and no condition on its text can hold", "error", n.lineErr)
	}
	err = stream.Send(&nodeattestorv1.PayloadOrChallengeResponse{
		Data: &nodeattestorv1.PayloadOrChallengeResponse_Payload{Payload: payload}})
	phase := "answer"
	for answer := n.respond; err == nil; answer, phase = n.goOn, "chunk" {
		var msg *nodeattestorv1.Challenge
		if msg, err = stream.Recv(); err != nil {
			break
		}
		var data []byte
		if data, err = timed(p.metrics, phase, func() ([]byte, error) { return answer(ctx, msg.Challenge) }); err != nil {
			return err
		}
		err = stream.Send(&nodeattestorv1.PayloadOrChallengeResponse{
			Data: &nodeattestorv1.PayloadOrChallengeResponse_ChallengeResponse{ChallengeResponse: data}})
	}
	// SPIRE's agent ends the stream, mostly by cancelling it, once the server has decided. It logs how that was.
	if errors.Is(err, io.EOF) || status.Code(err) == codes.Canceled {
		return nil
	}
	return fmt.Errorf("the stream ended: %w", err)
}
