package stage

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/keelson-project/keelson/test/e2e/workload/said"
)

// URL is a workload's address by the Service of its account.
func (p Pod) URL(path string) string {
	return fmt.Sprintf("http://%s.%s:%d%s", p.Account, p.Namespace, HTTPPort, path)
}

// Address is the pod's own address and TCP port.
func (s *Stage) Address(ctx context.Context, p Pod, port int) (string, error) {
	object, err := s.GetPod(ctx, p.Namespace, p.Name)
	if err != nil {
		return "", err
	}
	if object.Status.PodIP == "" {
		return "", fmt.Errorf("stage: pod %s has no address", p)
	}
	return fmt.Sprintf("%s:%d", object.Status.PodIP, port), nil
}

// ask runs the workload's program in a pod and decodes what it printed, one object a line.
func ask[T any](ctx context.Context, s *Stage, p Pod, args ...string) ([]T, error) {
	result, err := s.Exec(ctx, p.Namespace, p.Name, "main", append([]string{"/workload"}, args...)...)
	if err != nil {
		return nil, fmt.Errorf("stage: in %s: %w", p, err)
	}
	var all []T
	for decoder := json.NewDecoder(strings.NewReader(result.Stdout)); ; {
		var one T
		if err := decoder.Decode(&one); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("stage: in %s: %w: %s%s", p, err, result.Stdout, result.Stderr)
		}
		all = append(all, one)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("stage: in %s: exit %d, nothing said: %s", p, result.ExitCode, result.Stderr)
	}
	return all, nil
}

func one[T any](all []T, err error) (T, error) {
	if err != nil {
		var none T
		return none, err
	}
	return all[0], nil
}

// SVID asks for the pod's identity from inside.
func (s *Stage) SVID(ctx context.Context, p Pod) (said.SVID, error) {
	return one(ask[said.SVID](ctx, s, p, "svid"))
}

// Get makes one HTTP request from inside a pod.
func (s *Stage) Get(ctx context.Context, from Pod, method, url string) (said.Try, error) {
	return one(ask[said.Try](ctx, s, from, "get", "-method", method, url))
}

// Dial makes one TCP connection from inside a pod.
func (s *Stage) Dial(ctx context.Context, from Pod, address string) (said.Try, error) {
	return one(ask[said.Try](ctx, s, from, "dial", address))
}

// DialService names a service by its account: a try that ends with anything but said.Unresolved has been answered by cluster DNS.
func (s *Stage) DialService(ctx context.Context, from, to Pod) (said.Try, error) {
	return s.Dial(ctx, from, fmt.Sprintf("%s.%s:%d", to.Account, to.Namespace, TCPPort))
}

// GetAs makes one HTTP request by TLS from inside a pod, past any proxy of its own: with the pod's own identity ("svid"), or with a
// certificate and its key in PEM.
func (s *Stage) GetAs(ctx context.Context, from Pod, identity, method, url string) (said.Try, error) {
	if identity != "svid" {
		identity = base64.StdEncoding.EncodeToString([]byte(identity))
	}
	return one(ask[said.Try](ctx, s, from, "get", "-method", method, "-identity", identity, url))
}

// IstiodsWord is a certificate and key for a workload's SPIFFE ID from the authority of istiod's own port, in PEM, for GetAs.
func (s *Stage) IstiodsWord(p Pod) ([]byte, error) { return s.authority.Impersonate(p.ID()) }

// Probing says how to try targets again and again.
type Probing struct {
	// For is how long at most, under a minute.
	For, Every, Timeout time.Duration
	// Name, where it is set, is unique in the pod: Stop ends the probe by it, and Await waits for its signs.
	Name string
	// Failing says that tries fail before the change that is waited for.
	Failing bool
	Method  string
	// Contains makes a try succeed when it is in the answer.
	Contains string
}

// Listeners is where a pod's proxy shows, inside the pod, what it does with connections to it.
const Listeners = "http://127.0.0.1:15000/config_dump?resource=dynamic_listeners&name_regex=virtualInbound"

// Probe tries targets (URLs, or tcp:HOST:PORT) again and again from inside a pod.
func (s *Stage) Probe(ctx context.Context, from Pod, p Probing, targets ...string) ([]said.Try, error) {
	args := []string{
		"probe", "-for", p.For.String(), "-every", p.Every.String(), "-timeout", p.Timeout.String(), "-name", p.Name, fmt.Sprintf("-open=%t", !p.Failing),
		"-method", p.Method, "-contains", p.Contains,
	}
	return ask[said.Try](ctx, s, from, append(args, targets...)...)
}

// Hold keeps a TCP connection open from inside a pod until Stop, and tells when it stood and when it was cut.
func (s *Stage) Hold(ctx context.Context, from Pod, length time.Duration, name, address string) ([]said.Held, error) {
	return ask[said.Held](ctx, s, from, "hold", "-for", length.String(), "-name", name, address)
}

// Signs of a probe: it has seen things as they are before the change, and otherwise.
const (
	Began   = "began"
	Changed = "changed"
)

// Await waits for a sign of a probe.
func (s *Stage) Await(ctx context.Context, in Pod, name, sign string, limit time.Duration) error {
	result, err := s.Exec(ctx, in.Namespace, in.Name, "main", "/workload", "await", "-for", limit.String(), name+"."+sign)
	if err == nil && result.ExitCode != 0 {
		err = errors.New(result.Stderr)
	}
	if err != nil {
		return fmt.Errorf("stage: in %s: probe %s: %w", in, name, err)
	}
	return nil
}

// Stop ends a probe.
func (s *Stage) Stop(ctx context.Context, in Pod, name string) error {
	result, err := s.Exec(ctx, in.Namespace, in.Name, "main", "/workload", "stop", name)
	if err == nil && result.ExitCode != 0 {
		err = errors.New(result.Stderr)
	}
	if err != nil {
		return fmt.Errorf("stage: in %s: stop %s: %w", in, name, err)
	}
	return nil
}
