package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/workloadattestor/image/imagetest"
)

// step is one thing that the example shows.
type step struct {
	title string
	run   func(context.Context) error
}

// run shows every step. It leaves nothing behind.
func run(ctx context.Context, out io.Writer, hold bool) (err error) {
	w, err := newWorld(ctx, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	w.say("Everything happens in %s.", w.dir)
	for i, s := range []step{
		{"A registry has two images; one is signed", w.push},
		{"The pipeline asks what the cluster would say", w.verify},
		{"A node runs containerd", w.startContainerd},
		{"The SPIRE server starts", w.startServer},
		{"An identity is registered for what is signed", w.register},
		{"The agent starts, with the workload attestor", w.startAgent},
		{"The signed image gets the identity", func(ctx context.Context) error { return w.ask(ctx, "api", w.signed.Reference(), true) }},
		{"The unsigned image gets nothing", func(ctx context.Context) error { return w.ask(ctx, "other", w.unsigned.Reference(), false) }},
		{"An index that hides an unsigned image behind a signed one gets nothing", w.hidden},
		{"Metrics and readiness", w.metrics},
	} {
		w.say("\n%d. %s", i+1, s.title)
		if err := s.run(ctx); err != nil {
			return fmt.Errorf("step %d: %s: %w", i+1, s.title, err)
		}
	}
	if hold {
		w.say("\nEverything runs on, in %s; Ctrl-C ends it.", w.dir)
		<-ctx.Done()
	}
	return nil
}

func (w *world) push(ctx context.Context) error {
	program, err := os.ReadFile(w.paths["workload"])
	if err != nil {
		return err
	}
	for note, to := range map[string]*node.Pushed{"signed": &w.signed, "unsigned": &w.unsigned} {
		if *to, err = w.registry.Push(ctx, "team/app-"+note, node.Image{Files: map[string][]byte{"/workload": program, "/note": []byte(note)},
			Entrypoint: []string{"/workload"}, Cmd: []string{"pause"}}); err != nil {
			return err
		}
	}
	key, public, err := imagetest.NewKey()
	if err != nil {
		return err
	}
	w.key = key
	if err := w.write("operator/release.pub", string(public)); err != nil {
		return err
	}
	w.say("  signed as by: cosign sign --key operator/release.key %s", w.signed.Reference())
	return imagetest.Sign(ctx, w.signed.Repository, w.signed.Manifest.String(), key, name.Insecure)
}

func (w *world) verify(ctx context.Context) error {
	if _, err := w.do(ctx, "keelson", "image", "verify", w.signed.Reference(), "--key", "operator/release.pub", "--insecure"); err != nil {
		return err
	}
	return w.refuses(ctx, w.unsigned.Reference())
}

// refuses wants `keelson image verify` to say no, which is exit code 1.
func (w *world) refuses(ctx context.Context, reference string) error {
	_, err := w.do(ctx, "keelson", "image", "verify", reference, "--key", "operator/release.pub", "--insecure")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		return fmt.Errorf("%s is not refused: %w", reference, err)
	}
	w.say("    (exit 1)")
	return nil
}

func (w *world) startContainerd(ctx context.Context) (err error) {
	w.runtime, err = node.StartContainerd(ctx, w.group, node.ContainerdOptions{Name: "node-1", Number: 1, Dir: w.path("node-1"),
		Network: w.network, Registry: w.registry, Pause: w.unsigned, Log: w.out})
	return err
}

func (w *world) startServer(ctx context.Context) error {
	if err := w.write("server.conf", w.ports(serverConf)); err != nil {
		return err
	}
	var err error
	if w.server, err = w.start("spire-server", "spire-server", "run", "-config", "server.conf"); err != nil {
		return err
	}
	if err := until(ctx, "the server answers", func(ctx context.Context) (bool, error) {
		_, err := w.quietly(ctx, "spire-server", "healthcheck", "-socketPath", "server/api.sock")
		return err == nil, err
	}); err != nil {
		return err
	}
	bundle, err := w.quietly(ctx, "spire-server", "bundle", "show", "-socketPath", "server/api.sock")
	if err != nil {
		return err
	}
	return w.write("bundle.pem", bundle)
}

// register makes the entry. With policy-sync nobody writes entries: it makes them of TrustPolicies.
func (w *world) register(ctx context.Context) error {
	_, err := w.do(ctx, "spire-server", "entry", "create", "-socketPath", "server/api.sock", "-parentID", "spiffe://example.org/node-1",
		"-spiffeID", "spiffe://example.org/ns/payments/sa/api", "-selector", "keelson:ns:payments", "-selector", "keelson:signed-by:release-key")
	return err
}

func (w *world) startAgent(ctx context.Context) error {
	if err := w.write("agent.conf", w.ports(agentConf)); err != nil {
		return err
	}
	if _, err := w.do(ctx, "spire-agent", "validate", "-config", "agent.conf"); err != nil {
		return err
	}
	token, err := w.quietly(ctx, "spire-server", "token", "generate", "-socketPath", "server/api.sock", "-spiffeID", "spiffe://example.org/node-1")
	if err != nil {
		return err
	}
	token = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(token), "Token:"))
	if w.agent, err = w.start("spire-agent", "spire-agent", "run", "-config", "agent.conf", "-joinToken", token); err != nil {
		return err
	}
	err = until(ctx, "the agent answers", func(ctx context.Context) (bool, error) {
		_, err := w.quietly(ctx, "spire-agent", "healthcheck", "-socketPath", "agent/public/agent.sock")
		return err == nil, err
	})
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, w.agent.Tail(5))
	}
	return err
}

// answer is what the program in the container prints.
type answer struct {
	OK       bool   `json:"ok"`
	SPIFFEID string `json:"spiffe_id"`
	Error    string `json:"error"`
}

// ask starts a pod and has the program in it ask for an identity.
func (w *world) ask(ctx context.Context, pod, image string, want bool) error {
	w.say("  pod payments/%s runs %s and asks the Workload API", pod, image)
	ran, err := w.runtime.Run(ctx, node.PodSpec{Namespace: "payments", Name: pod, UID: "uid-" + pod, Container: "main", Image: image,
		Mounts: []node.Mount{{From: w.path("agent/public"), To: "/spire"}}})
	if err != nil {
		return err
	}
	var got answer
	query := func(ctx context.Context) (bool, error) {
		result, err := w.runtime.Exec(ctx, ran.ContainerID, "/workload", "svid", "-socket", "unix:///spire/agent.sock", "-timeout", "5s")
		if err != nil {
			return false, err
		}
		if err := json.Unmarshal([]byte(result.Stdout), &got); err != nil {
			return false, fmt.Errorf("%w: %s", err, result.Stdout)
		}
		return got.OK == want, fmt.Errorf("it answers %+v", got)
	}
	if err := until(ctx, "the answer", query); err != nil {
		return fmt.Errorf("%w\n%s", err, w.agent.Tail(5))
	}
	if got.OK {
		w.show(got.SPIFFEID)
		return nil
	}
	w.show("no identity issued")
	if got.SPIFFEID != "" {
		return fmt.Errorf("it has %s", got.SPIFFEID)
	}
	return nil
}

// hidden pushes an index without the key: the first entry leads to the unsigned image, the second is the signed one.
func (w *world) hidden(ctx context.Context) error {
	amd64 := &v1.Platform{OS: "linux", Architecture: "amd64"}
	inner := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{Add: w.unsigned.Image, Descriptor: v1.Descriptor{Platform: amd64}})
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		mutate.IndexAddendum{Add: inner, Descriptor: v1.Descriptor{Platform: amd64}}, mutate.IndexAddendum{Add: w.signed.Image, Descriptor: v1.Descriptor{Platform: amd64}})
	reference, err := name.ParseReference(w.signed.Repository+":nested", name.Insecure)
	if err != nil {
		return err
	}
	if err := remote.WriteIndex(reference, index, remote.WithContext(ctx)); err != nil {
		return err
	}
	if err := w.refuses(ctx, reference.Name()); err != nil {
		return err
	}
	return w.ask(ctx, "trick", reference.Name(), false)
}

func (w *world) metrics(ctx context.Context) error {
	if err := w.curl(ctx, "/readyz", ""); err != nil {
		return err
	}
	return w.curl(ctx, "/metrics", "keelson_a")
}

// curl shows the lines that begin with prefix of what the plugin's listener answers.
func (w *world) curl(ctx context.Context, path, prefix string) error {
	url := "http://127.0.0.1:" + w.metricsPort + path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	w.say("  $ curl %s", url)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", url, resp.Status, body)
	}
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, prefix) && !strings.Contains(line, "_seconds_bucket") {
			w.show(line)
		}
	}
	return nil
}
