// Package runtime asks a node's container runtime about one container, over the CRI (k8s.io/cri-api, runtime.v1).
//
// The runtime is part of what the node attestor vouches for. Its answers hold text that others chose: labels come from
// the kubelet and so from the API, the image's name from the pod's author. CRI's standard fields have neither
// privileges nor capabilities, nor the namespaces of a container; they are in the verbose "info" alone, whose form is the
// runtime's own (containerd and CRI-O are read). What it lacks is unproven; what contradicts another field is refused.
package runtime

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson-project/keelson/workloadattestor/workloadclaim"
)

// ErrUnknown means that this node's runtime has no such container: another node's, another runtime's, or a pod sandbox.
var ErrUnknown = errors.New("container is unknown to this node's runtime")

// ErrNotYet means that the runtime has the container and does not say that it runs: it was created and its start is not recorded,
// or its state is not known. A process may ask before the runtime has taken note of it, so this proves nothing.
var ErrNotYet = errors.New("container is not known to run yet")

// Sandbox means that the ID is a pod sandbox's. It has no container's claims. errors.Is(err, ErrUnknown) is true.
type Sandbox struct {
	ID              string
	Namespace, Name string // of the pod
	Handler         string // the runtime handler (RuntimeClass); "" is the default one
	Kind            string // workloadclaim.SandboxRunc and so on; "" if the runtime does not report it
}

// Error says what a process in a sandbox's own cgroup is.
func (e *Sandbox) Error() string {
	const inside = "the pod's containers are inside the sandbox, where this node's kernel does not tell them apart, so its processes cannot be attested"
	what := "its processes are the sandbox's own (pause)"
	switch {
	case e.Kind == workloadclaim.SandboxGVisor:
		what = fmt.Sprintf("gVisor runs it (runtime handler %.63q): %s", e.Handler, inside)
	case e.Kind == workloadclaim.SandboxKata:
		what = fmt.Sprintf("Kata Containers run it in a virtual machine (runtime handler %.63q): %s", e.Handler, inside)
	case e.Kind == "" && e.Handler != "":
		what = fmt.Sprintf("runtime handler %.63q runs it: with gVisor (runsc) and Kata Containers (kata) %s", e.Handler, inside)
	}
	return fmt.Sprintf("%.64s is the sandbox of pod %.63s/%.253s and no container: %s", e.ID, e.Namespace, e.Name, what)
}

// Unwrap makes a Sandbox an ErrUnknown.
func (e *Sandbox) Unwrap() error { return ErrUnknown }

// Container is what the runtime says about a running container.
type Container struct {
	ID        string // 64 hex digits
	SandboxID string

	Namespace string // of the pod, from the labels that the kubelet sets; the sandbox says the same
	PodName   string
	PodUID    string
	Name      string // of the container in the pod's spec

	// ImageID is the digest of the running image's config, from whichever of the runtime's answers has it: image_id
	// (containerd since 2.3, CRI-O), the image that the kubelet resolved and asked for (containerd's verbose info), or
	// ImageStatus. It is empty when none has it.
	ImageID      string
	ImageProblem error    // why ImageID cannot be told: the answers disagree
	ImageRef     string   // CRI image_ref
	ImageName    string   // one of the image's names
	ImageAsked   string   // what the pod asked for, where the runtime tells
	ImageHints   []string // the image's other tags and repo digests
	HintsError   error    // why ImageHints may lack some

	// Snapshotter made the root file system (containerd); empty when the runtime does not tell.
	Snapshotter string

	CgroupsPath string // OCI runtime spec linux.cgroupsPath; empty when the runtime does not tell

	Privileged        workloadclaim.Fact
	HostPID           workloadclaim.Fact
	HostNetwork       workloadclaim.Fact
	HostIPC           workloadclaim.Fact
	AddedCapabilities workloadclaim.Fact

	// Reported is true when the runtime reports how the container is confined: Posture and the fields after it.
	Reported bool
	Posture  workloadclaim.Posture
	// AppArmorRefused is true when the pod asked for no AppArmor profile, or the runtime has set "unconfined".
	AppArmorRefused bool
	SELinux         SELinux  // what the pod asked for; where the request is not shown, the type that is in force
	Sysctls         []string // names that the pod's sandbox sets
	HostPorts       []int32  // ports of the node that lead to the pod
	// Handler is the sandbox's runtime handler, which its RuntimeClass names; "" is the default one. Sandbox is what it
	// is: workloadclaim.SandboxRunc and so on, "" if it is not known.
	Handler, Sandbox string

	// Mounts is what of the node the kubelet had mounted into the container: the pod's volumes, its hosts file, and
	// whatever of the node the pod asked for, in no order.
	Mounts []Mount
}

// Mount is a folder or file of the node in the container.
type Mount struct {
	Path     string // clean and absolute
	ReadOnly bool
}

// Client talks to one runtime. It is safe for concurrent use; Close it.
type Client struct {
	conn    *grpc.ClientConn
	runtime criv1.RuntimeServiceClient
	images  criv1.ImageServiceClient
	timeout time.Duration
}

// maxAnswer bounds one CRI answer; the kubelet's own limit.
const maxAnswer = 16 << 20

// Dial makes a client for the runtime that listens at the Unix socket with this path. It connects when first used, so
// a runtime that restarts is found again. timeout bounds each call.
func Dial(socket string, timeout time.Duration) (*Client, error) {
	conn, err := grpc.NewClient("unix:"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // a local socket: its file permissions guard it
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		return nil, fmt.Errorf("runtime: %s: %w", socket, err)
	}
	return &Client{
		conn:    conn,
		runtime: criv1.NewRuntimeServiceClient(conn),
		images:  criv1.NewImageServiceClient(conn),
		timeout: timeout,
	}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Container asks about the container with this ID. ErrUnknown when the runtime does not have it, a *Sandbox where it has a pod
// sandbox of that ID. ErrNotYet when it does not say that the container runs. An error that wraps a gRPC status came from the call;
// every other one is a refusal of what the runtime said.
func (c *Client) Container(ctx context.Context, id string) (Container, error) {
	return c.container(ctx, id, false)
}

// Started is Container for one that runs or has ended.
func (c *Client) Started(ctx context.Context, id string) (Container, error) {
	return c.container(ctx, id, true)
}

func (c *Client) container(ctx context.Context, id string, ended bool) (Container, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	answer, err := c.runtime.ContainerStatus(ctx, &criv1.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if status.Code(err) == codes.NotFound {
		return Container{}, c.unknown(ctx, id)
	}
	if err != nil {
		return Container{}, fmt.Errorf("runtime: container %s: %w", id, err)
	}
	container, err := parseContainer(id, answer, ended)
	if err != nil {
		return Container{}, err
	}
	sandbox, err := c.runtime.PodSandboxStatus(ctx, &criv1.PodSandboxStatusRequest{PodSandboxId: container.facts.SandboxID, Verbose: true})
	if err != nil {
		return Container{}, fmt.Errorf("runtime: pod sandbox %s: %w", container.facts.SandboxID, err)
	}
	if err := container.join(sandbox); err != nil {
		return Container{}, err
	}
	c.addImage(ctx, &container)
	return container.facts, nil
}

// unknown looks whether an ID that is no container's is a pod sandbox's. The answer only explains, so a failure costs nothing more.
func (c *Client) unknown(ctx context.Context, id string) error {
	answer, err := c.runtime.PodSandboxStatus(ctx, &criv1.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if s := answer.GetStatus(); err == nil && s.GetId() == id {
		verbose, _ := parseInfo(answer.GetInfo()) // what cannot be read explains nothing
		return &Sandbox{ID: id, Namespace: s.GetMetadata().GetNamespace(), Name: s.GetMetadata().GetName(),
			Handler: s.GetRuntimeHandler(), Kind: sandboxKind(verbose.RuntimeType)}
	}
	return ErrUnknown
}

// addImage asks about the image: its ID, and which other names it has, under which its manifest may be found. A failure costs
// only what it would have said.
func (c *Client) addImage(ctx context.Context, p *parsed) {
	facts, resolved := &p.facts, p.info.resolvedImage()
	image := cmp.Or(facts.ImageID, resolved, facts.ImageRef)
	answer, err := c.images.ImageStatus(ctx, &criv1.ImageStatusRequest{Image: &criv1.ImageSpec{Image: image}})
	if err != nil {
		facts.HintsError = fmt.Errorf("runtime: image %q: %w", image, err)
	}
	facts.ImageHints = append(facts.ImageHints, answer.GetImage().GetRepoDigests()...)
	facts.ImageHints = append(facts.ImageHints, answer.GetImage().GetRepoTags()...)
	for _, id := range []string{resolved, answer.GetImage().GetId()} {
		switch {
		case id == "" || plainID(id) == plainID(facts.ImageID):
		case facts.ImageID == "":
			facts.ImageID = id
		default:
			facts.ImageProblem = fmt.Errorf("runtime: container %s runs image %.80q by one of the runtime's answers and %.80q by another", facts.ID, facts.ImageID, id)
		}
	}
}

// plainID is an image ID without its algorithm: CRI-O leaves it out in places.
func plainID(id string) string { return strings.TrimPrefix(id, "sha256:") }
