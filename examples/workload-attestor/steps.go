package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/keelson-project/keelson/examples/walkthrough"
	"github.com/keelson-project/keelson/test/cluster/node"
	"github.com/keelson-project/keelson/workloadattestor/image/imagetest"
)

// run shows every step. It leaves nothing behind.
func run(ctx context.Context, out io.Writer, hold bool) (err error) {
	w, err := newWorld(ctx, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	return w.Walk(ctx, hold, []walkthrough.Step{
		{Title: "A registry has two images; one is signed", Run: w.push},
		{Title: "The pipeline asks what the cluster would say", Run: w.verify},
		{Title: "A node runs containerd", Run: w.startContainerd},
		{Title: "The SPIRE server starts", Run: w.startServer},
		{Title: "An identity is registered for what is signed", Run: w.register},
		{Title: "The agent starts, with the workload attestor", Run: w.startAgent},
		{Title: "The signed image gets the identity", Run: func(ctx context.Context) error { return w.ask(ctx, "api", w.signed.Reference(), true) }},
		{Title: "The unsigned image gets nothing", Run: func(ctx context.Context) error { return w.ask(ctx, "other", w.unsigned.Reference(), false) }},
		{Title: "An index that hides an unsigned image behind a signed one gets nothing", Run: w.hidden},
		{Title: "Metrics and readiness", Run: w.metrics},
	}...)
}

func (w *world) push(ctx context.Context) error {
	program, err := os.ReadFile(w.Program("workload"))
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
	if err := w.Write("operator/release.pub", string(public)); err != nil {
		return err
	}
	w.Say("  signed as by: cosign sign --key operator/release.key %s", w.signed.Reference())
	return imagetest.Sign(ctx, w.signed.Repository, w.signed.Manifest.String(), key, name.Insecure)
}

func (w *world) verify(ctx context.Context) error {
	if _, err := w.Do(ctx, "keelson", "image", "verify", w.signed.Reference(), "--key", "operator/release.pub", "--insecure"); err != nil {
		return err
	}
	return w.refuses(ctx, w.unsigned.Reference())
}

// refuses wants `keelson image verify` to say no, which is exit code 1.
func (w *world) refuses(ctx context.Context, reference string) error {
	_, err := w.Do(ctx, "keelson", "image", "verify", reference, "--key", "operator/release.pub", "--insecure")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		return fmt.Errorf("%s is not refused: %w", reference, err)
	}
	w.Say("    (exit 1)")
	return nil
}

func (w *world) startContainerd(ctx context.Context) (err error) {
	w.runtime, err = node.StartContainerd(ctx, w.Group, node.ContainerdOptions{Name: "node-1", Number: 1, Dir: w.Path("node-1"),
		Network: w.network, Registry: w.registry, Pause: w.unsigned, Log: w.Out})
	return err
}

func (w *world) startServer(ctx context.Context) error {
	if err := w.Write("server.conf", w.ports(serverConf)); err != nil {
		return err
	}
	var err error
	if w.server, err = w.Start("spire-server", "spire-server", "run", "-config", "server.conf"); err != nil {
		return err
	}
	if err := walkthrough.Until(ctx, "the server answers", func(ctx context.Context) (bool, error) {
		_, err := w.Quietly(ctx, "spire-server", "healthcheck", "-socketPath", "server/api.sock")
		return err == nil, err
	}); err != nil {
		return err
	}
	bundle, err := w.Quietly(ctx, "spire-server", "bundle", "show", "-socketPath", "server/api.sock")
	if err != nil {
		return err
	}
	return w.Write("bundle.pem", bundle)
}

// register makes the entry. With policy-sync nobody writes entries: it makes them of TrustPolicies.
func (w *world) register(ctx context.Context) error {
	_, err := w.Do(ctx, "spire-server", "entry", "create", "-socketPath", "server/api.sock", "-parentID", "spiffe://example.org/node-1",
		"-spiffeID", "spiffe://example.org/ns/payments/sa/api", "-selector", "keelson:ns:payments", "-selector", "keelson:signed-by:release-key")
	return err
}

func (w *world) startAgent(ctx context.Context) error {
	if err := w.Write("agent.conf", w.ports(agentConf)); err != nil {
		return err
	}
	if _, err := w.Do(ctx, "spire-agent", "validate", "-config", "agent.conf"); err != nil {
		return err
	}
	token, err := w.Quietly(ctx, "spire-server", "token", "generate", "-socketPath", "server/api.sock", "-spiffeID", "spiffe://example.org/node-1")
	if err != nil {
		return err
	}
	token = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(token), "Token:"))
	if w.agent, err = w.Start("spire-agent", "spire-agent", "run", "-config", "agent.conf", "-joinToken", token); err != nil {
		return err
	}
	err = walkthrough.Until(ctx, "the agent answers", func(ctx context.Context) (bool, error) {
		_, err := w.Quietly(ctx, "spire-agent", "healthcheck", "-socketPath", "agent/public/agent.sock")
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
	w.Say("  pod payments/%s runs %s and asks the Workload API", pod, image)
	ran, err := w.runtime.Run(ctx, node.PodSpec{Namespace: "payments", Name: pod, UID: "uid-" + pod, Container: "main", Image: image,
		Mounts: []node.Mount{{From: w.Path("agent/public"), To: "/spire"}}})
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
	if err := walkthrough.Until(ctx, "the answer", query); err != nil {
		return fmt.Errorf("%w\n%s", err, w.agent.Tail(5))
	}
	if got.OK {
		w.Show(got.SPIFFEID)
		return nil
	}
	w.Show("no identity issued")
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
	if err := w.Curl(ctx, "/readyz"); err != nil {
		return err
	}
	return w.Curl(ctx, "/metrics", "keelson_a")
}
