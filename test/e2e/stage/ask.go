package stage

import (
	"context"
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

// Probing says how to try targets again and again.
type Probing struct {
	// For is how long at most, under a minute. With Until "ok" or "failing" it ends once every try has been that for Linger.
	For, Every, Timeout, Linger time.Duration
	Until                       string
	Method                      string
	// Contains makes a try succeed when it is in the answer.
	Contains string
}

// Probe tries targets (URLs, or tcp:HOST:PORT) again and again from inside a pod.
func (s *Stage) Probe(ctx context.Context, from Pod, p Probing, targets ...string) ([]said.Try, error) {
	args := []string{
		"probe", "-for", p.For.String(), "-every", p.Every.String(), "-timeout", p.Timeout.String(), "-linger", p.Linger.String(), "-until", p.Until,
		"-method", p.Method, "-contains", p.Contains,
	}
	return ask[said.Try](ctx, s, from, append(args, targets...)...)
}

// Hold keeps a TCP connection open from inside a pod, and tells when it stood and when it was cut.
func (s *Stage) Hold(ctx context.Context, from Pod, length time.Duration, address string) ([]said.Held, error) {
	return ask[said.Held](ctx, s, from, "hold", "-for", length.String(), "-patience", "700ms", address)
}
