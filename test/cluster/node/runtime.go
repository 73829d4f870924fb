package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson-project/keelson/test/cluster"
)

// Runtime is a client of one container runtime, with the pods that it started.
type Runtime struct {
	// Socket is the path of the CRI socket.
	Socket string

	name    string
	dir     string
	cgroup  string
	process *cluster.Process // nil when somebody else runs it
	conn    *grpc.ClientConn
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient
	pods    []string // sandbox IDs
}

// PodSpec is a pod with one container.
type PodSpec struct {
	Namespace, Name, UID string
	// Labels and Annotations are the pod's own; what a kubelet adds is added.
	Labels, Annotations map[string]string
	Container           string
	// Image is a reference that the runtime can pull.
	Image  string
	Args   []string
	Mounts []Mount
	// Privileged and HostNetwork are what a restricted workload must not have.
	Privileged, HostNetwork bool
}

// Mount binds a folder or socket of the machine into the container, read-only.
type Mount struct{ From, To string }

// Pod is a running pod.
type Pod struct {
	Spec                   PodSpec
	SandboxID, ContainerID string
	// IP is its address in the network.
	IP string
	// ImageID is what the runtime says, and so what a kubelet would report as the container status's imageID.
	ImageID   string
	StartedAt time.Time
}

// Result is what a program in a container left.
type Result struct {
	Stdout, Stderr string
	ExitCode       int32
}

// Dial makes a client for the runtime behind a socket.
func Dial(socket string) (*Runtime, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("node: %s: %w", socket, err)
	}
	return &Runtime{
		Socket: socket, dir: filepath.Dir(socket), conn: conn,
		runtime: cri.NewRuntimeServiceClient(conn), images: cri.NewImageServiceClient(conn),
	}, nil
}

// Ready tells whether the runtime and its network are ready, and what they lack when not.
func (r *Runtime) Ready(ctx context.Context) error {
	status, err := r.runtime.Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return fmt.Errorf("node: runtime status: %w", err)
	}
	for _, c := range status.Status.Conditions {
		// Other conditions are advice, such as containerd's about cgroup v1.
		if !c.Status && (c.Type == cri.RuntimeReady || c.Type == cri.NetworkReady) {
			return fmt.Errorf("node: runtime is not ready: %s: %s", c.Type, c.Message)
		}
	}
	return nil
}

// Run pulls the image and starts the pod. What was started is removed again when a later step fails.
func (r *Runtime) Run(ctx context.Context, s PodSpec) (*Pod, error) {
	pod, err := r.run(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("node: pod %s/%s on %s: %w", s.Namespace, s.Name, r.name, err)
	}
	return pod, nil
}

func (r *Runtime) run(ctx context.Context, s PodSpec) (*Pod, error) {
	if _, err := r.images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: s.Image}}); err != nil {
		return nil, fmt.Errorf("pull: %w", err)
	}
	lastWords, err := r.LastWords(s.UID, s.Container)
	if err != nil {
		return nil, err
	}
	sandbox := s.sandbox(r.cgroup, filepath.Join(r.dir, "logs"))
	ran, err := r.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	r.pods = append(r.pods, ran.PodSandboxId)
	created, err := r.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: ran.PodSandboxId, Config: s.container(lastWords), SandboxConfig: sandbox,
	})
	if err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	if _, err := r.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		return nil, fmt.Errorf("start: %w", err)
	}
	return r.inspect(ctx, &Pod{Spec: s, SandboxID: ran.PodSandboxId, ContainerID: created.ContainerId})
}

func (r *Runtime) inspect(ctx context.Context, p *Pod) (*Pod, error) {
	sandbox, err := r.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.SandboxID})
	if err != nil {
		return nil, fmt.Errorf("sandbox status: %w", err)
	}
	container, err := r.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: p.ContainerID})
	if err != nil {
		return nil, fmt.Errorf("container status: %w", err)
	}
	if container.Status.State != cri.ContainerState_CONTAINER_RUNNING {
		return nil, fmt.Errorf("container is %s: %s", container.Status.State, container.Status.Message)
	}
	p.IP = sandbox.Status.GetNetwork().GetIp()
	p.ImageID = container.Status.ImageRef
	p.StartedAt = time.Unix(0, container.Status.StartedAt)
	return p, nil
}

// sandbox is the configuration that a kubelet gives: its labels are how everybody else finds the pod again.
func (s PodSpec) sandbox(cgroup, logs string) *cri.PodSandboxConfig {
	labels := map[string]string{
		"io.kubernetes.pod.name": s.Name, "io.kubernetes.pod.namespace": s.Namespace, "io.kubernetes.pod.uid": s.UID,
	}
	for k, v := range s.Labels {
		labels[k] = v
	}
	network := cri.NamespaceMode_POD
	if s.HostNetwork {
		network = cri.NamespaceMode_NODE
	}
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: s.Name, Uid: s.UID, Namespace: s.Namespace},
		Hostname:     s.Name,
		LogDirectory: filepath.Join(logs, s.Namespace+"_"+s.Name+"_"+s.UID),
		Labels:       labels, Annotations: s.Annotations,
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: cgroup + "/kubepods/besteffort/pod" + s.UID,
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Network: network, Pid: cri.NamespaceMode_CONTAINER},
				Privileged:       s.Privileged,
			},
		},
	}
}

// KubeletRoot is the folder in which a pod's own files are, as a kubelet has one.
func (r *Runtime) KubeletRoot() string { return filepath.Join(r.dir, "kubelet") }

// LastWords is the mount that every kubelet gives a container, for what it has to say when it ends.
func (r *Runtime) LastWords(podUID, container string) (*cri.Mount, error) {
	file := filepath.Join(r.KubeletRoot(), "pods", podUID, "containers", container, "last-words")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil { // #nosec G301 -- as a kubelet makes them; workloads of other users write below
		return nil, fmt.Errorf("node: %w", err)
	}
	if err := os.WriteFile(file, nil, 0o666); err != nil { // #nosec G306 -- the container may run as anybody
		return nil, fmt.Errorf("node: %w", err)
	}
	return &cri.Mount{HostPath: file, ContainerPath: "/dev/termination-log"}, nil
}

func (s PodSpec) container(lastWords *cri.Mount) *cri.ContainerConfig {
	mounts := []*cri.Mount{lastWords}
	for _, m := range s.Mounts {
		mounts = append(mounts, &cri.Mount{HostPath: m.From, ContainerPath: m.To, Readonly: true})
	}
	network := cri.NamespaceMode_POD
	if s.HostNetwork {
		network = cri.NamespaceMode_NODE
	}
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: s.Container},
		Image:    &cri.ImageSpec{Image: s.Image, UserSpecifiedImage: s.Image},
		Args:     s.Args, Mounts: mounts,
		Labels: map[string]string{
			"io.kubernetes.container.name": s.Container, "io.kubernetes.pod.name": s.Name,
			"io.kubernetes.pod.namespace": s.Namespace, "io.kubernetes.pod.uid": s.UID,
		},
		Annotations: map[string]string{"io.kubernetes.container.restartCount": "0"},
		LogPath:     s.Container + ".log",
		Linux: &cri.LinuxContainerConfig{
			SecurityContext: Confine(s.Privileged, &cri.NamespaceOption{Network: network, Pid: cri.NamespaceMode_CONTAINER}),
		},
	}
}

// Exec runs a program in a container, as one more process of it, for at most a minute.
func (r *Runtime) Exec(ctx context.Context, containerID string, command ...string) (Result, error) {
	out, err := r.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: containerID, Cmd: command, Timeout: 60})
	if err != nil {
		return Result{}, fmt.Errorf("node: exec on %s: %w", r.name, err)
	}
	return Result{Stdout: string(out.Stdout), Stderr: string(out.Stderr), ExitCode: out.ExitCode}, nil
}

// PID is the first process of a container, in the PID namespace of its runtime.
func (r *Runtime) PID(ctx context.Context, containerID string) (int, error) {
	status, err := r.runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: containerID, Verbose: true})
	if err != nil {
		return 0, fmt.Errorf("node: container status on %s: %w", r.name, err)
	}
	var info struct{ PID int }
	if err := json.Unmarshal([]byte(status.Info["info"]), &info); err != nil || info.PID == 0 {
		return 0, fmt.Errorf("node: container %s on %s: the runtime does not tell its process: %w", containerID, r.name, err)
	}
	return info.PID, nil
}

// Remove stops and removes a pod.
func (r *Runtime) Remove(ctx context.Context, sandboxID string) error {
	if _, err := r.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: sandboxID}); err != nil {
		return fmt.Errorf("node: stop pod on %s: %w", r.name, err)
	}
	if _, err := r.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: sandboxID}); err != nil {
		return fmt.Errorf("node: remove pod on %s: %w", r.name, err)
	}
	return nil
}

// Disconnect ends the connection and leaves runtime and pods alone.
func (r *Runtime) Disconnect() error { return r.conn.Close() }

// Close removes every pod that was started, ends the runtime if it is ours, and undoes its mounts and cgroups. It takes a
// context of its own, since the run's is over by then.
func (r *Runtime) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var errs []error
	if r.process == nil || r.process.Err() == nil { // a runtime that is gone cannot be asked
		for _, id := range r.pods {
			errs = append(errs, r.Remove(ctx, id))
		}
	}
	errs = append(errs, r.conn.Close())
	if r.process != nil {
		r.process.Stop(5 * time.Second)
		errs = append(errs, Cleanup(r.dir, r.cgroup))
	}
	return errors.Join(errs...)
}
