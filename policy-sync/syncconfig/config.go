// Package syncconfig is policy-sync's configuration file: YAML, read strictly. Unknown and doubled keys, values that do not
// fit and files that are not there are all reported at once, each with its line, before anything runs. No default depends on
// what exists on the machine.
//
// The file is the operator's. The files that it names (keys, kubeconfig) are read once, at start, but for the
// registries' credentials, which are read again when they change.
package syncconfig

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"

	"github.com/keelson-project/keelson/policy-sync/api/v1alpha1"
	"github.com/keelson-project/keelson/policy-sync/snapshot"
	"github.com/keelson-project/keelson/workloadattestor/image"
)

// maxFile bounds a configuration file.
const maxFile = 1 << 20

// Presence says what to do about an optional API.
type Presence string

// The values of Presence.
const (
	Required Presence = "required" // refuse to start without it
	Optional Presence = "optional" // use it where it is served, and say so where it is not
	Off      Presence = "off"      // do not look
)

// Config is a whole, valid configuration.
type Config struct {
	// Kubeconfig is a path; empty means the service account of the pod that policy-sync runs in.
	Kubeconfig    string
	Snapshot      snapshot.Config // without Calico and Istio, which depend on what the API server serves
	Calico, Istio Presence
	SPIRE         SPIRE
	Images        Images
	// Metrics and Health are listen addresses; "0" switches one off.
	Metrics, Health string
	LeaderElection  LeaderElection
	Resync          time.Duration
	Debounce        time.Duration
}

// SPIRE says where the SPIRE server is.
type SPIRE struct {
	TrustDomain                  spiffeid.TrustDomain
	Socket, Address, WorkloadAPI string
	Timeout                      time.Duration
	// MaxRead bounds how many entries, and how many agents, one reading takes.
	MaxRead int
}

// Images says how images are verified.
type Images struct {
	Checker image.Config // without Now
	// Credentials is Checker's Keychain where a file is configured, and nil where registries are asked anonymously.
	Credentials *image.CredentialsFile
	// PullSecrets says that pods' pull secrets count; whoever runs the checker has to give it Checker.PullSecrets.
	PullSecrets bool
	Recheck     time.Duration
}

// LeaderElection names the lease by which replicas agree on who writes.
type LeaderElection struct {
	Enabled         bool
	Namespace, Name string
	LeaseDuration   time.Duration
}

// Load reads and validates a file.
func Load(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, fmt.Errorf("syncconfig: %w", err)
	}
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return Config{}, fmt.Errorf("syncconfig: %s: %w", path, err)
	}
	c, err := Parse(content)
	if err != nil {
		return Config{}, fmt.Errorf("syncconfig: %s:\n%w", path, err)
	}
	return c, nil
}

// Parse validates a file's content and reads the files that it names.
func Parse(content []byte) (Config, error) {
	if len(content) > maxFile {
		return Config{}, fmt.Errorf("more than %d bytes", maxFile)
	}
	r := file{
		X509SVIDTTL: 5 * time.Minute, Taint: true, Resync: 30 * time.Second, Debounce: 10 * time.Millisecond,
		Calico: Optional, Istio: Optional, TierOrder: snapshot.DefaultTierOrder,
		WidestPodCIDR:  widestFile{IPv4: snapshot.DefaultWidestPodCIDR4, IPv6: snapshot.DefaultWidestPodCIDR6},
		SPIRE:          spireFile{Timeout: 5 * time.Second, MaxRead: snapshot.DefaultMaxRead},
		Listen:         listenFile{Metrics: "127.0.0.1:8080", Health: "127.0.0.1:8081"},
		LeaderElection: leaderFile{Enabled: true, Namespace: "keelson-system", Name: v1alpha1.LeaseName, LeaseDuration: 15 * time.Second},
		Images: imagesFile{Recheck: 10 * time.Second, TTL: image.DefaultTTL, FailureTTL: image.DefaultFailureTTL,
			Timeout: image.DefaultTimeout, Platform: platformFile{OS: "linux", Architecture: "amd64"}},
	}
	p := &problems{}
	decoder := yaml.NewDecoder(bytes.NewReader(content))
	decoder.KnownFields(true)
	switch err := decoder.Decode(&r); {
	case errors.Is(err, io.EOF):
		return Config{}, errors.New("the file is empty")
	case err != nil:
		p.decode(err)
	}
	if err := decoder.Decode(&yaml.Node{}); err == nil {
		p.add(0, "more than one YAML document")
	}
	if err := yaml.Unmarshal(content, &p.root); err != nil && len(p.list) == 0 {
		p.decode(err)
	}
	c := r.config(p)
	return c, p.err()
}
