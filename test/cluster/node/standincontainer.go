package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// standinContainer is a program that is said to be a container.
type standinContainer struct {
	id, sandboxID string
	config        *cri.ContainerConfig
	image         *standinImage
	ip, cgroup    string
	started       time.Time

	mu      sync.Mutex
	process *os.Process // nil before it is started
	ended   chan struct{}
}

// CreateContainer prepares a container.
func (s *Standin) CreateContainer(_ context.Context, r *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sandbox, image := s.sandboxes[r.GetPodSandboxId()], s.images[r.GetConfig().GetImage().GetImage()]
	if sandbox == nil || image == nil {
		return nil, status.Errorf(codes.NotFound, "pod sandbox %q or image %q is unknown", r.GetPodSandboxId(), r.GetConfig().GetImage().GetImage())
	}
	id, err := newID()
	if err != nil {
		return nil, err
	}
	s.containers[id] = &standinContainer{
		id: id, sandboxID: r.GetPodSandboxId(), config: r.GetConfig(), image: image, ip: sandbox.ip,
		cgroup: sandbox.config.GetLinux().GetCgroupParent() + "/" + id, ended: make(chan struct{}),
	}
	return &cri.CreateContainerResponse{ContainerId: id}, nil
}

func (s *Standin) container(id string) (*standinContainer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.containers[id]; c != nil {
		return c, nil
	}
	return nil, status.Errorf(codes.NotFound, "container %q is unknown", id)
}

// StartContainer starts the image's program.
func (s *Standin) StartContainer(_ context.Context, r *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	c, err := s.container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(s.opts.Dir, c.id[:12]+".log"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("node: stand-in: %w", err)
	}
	cmd, forget, err := s.launch(c, append(append([]string{}, c.image.entrypoint...), c.config.GetArgs()...), log, log)
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	c.mu.Lock()
	c.process, c.started = cmd.Process, time.Now()
	c.mu.Unlock()
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		forget()
		_ = log.Close() // the child wrote it
		close(c.ended)
	}()
	return &cri.StartContainerResponse{}, nil
}

// ExecSync runs one more program as a process of the container.
func (s *Standin) ExecSync(ctx context.Context, r *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	c, err := s.container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	var stdout, stderr bytes.Buffer
	cmd, forget, err := s.launch(c, r.GetCmd(), &stdout, &stderr)
	if err != nil {
		return nil, err
	}
	defer forget()
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() }) // it may have ended by itself
	defer stop()
	code := int32(0)
	if err := cmd.Wait(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			return nil, fmt.Errorf("node: stand-in: %w", err)
		}
		code = int32(exit.ExitCode()) // at most 255
	}
	return &cri.ExecSyncResponse{Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), ExitCode: code}, nil
}

// launch starts a program that waits until its process has its place under ProcRoot: an attestor that is asked about the
// process at once has to find it there. The shell's process becomes the program's, so its ID and start time stay.
func (s *Standin) launch(c *standinContainer, command []string, stdout, stderr io.Writer) (*exec.Cmd, func(), error) {
	args := []string{"-c", `read -r go && exec "$@"`, "sh", filepath.Join(c.image.root, command[0])}
	for _, arg := range command[1:] {
		args = append(args, c.translate(arg))
	}
	cmd := exec.Command("/bin/sh", args...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	gate, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, fmt.Errorf("node: stand-in: %w", err)
	}
	if err := s.group.StartCmd(cmd); err != nil {
		return nil, nil, err
	}
	dir := filepath.Join(s.ProcRoot, strconv.Itoa(cmd.Process.Pid))
	err = s.register(c, cmd.Process.Pid, dir)
	if err == nil {
		_, err = io.WriteString(gate, "go\n")
	}
	if err := errors.Join(err, gate.Close()); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("node: stand-in: %w", err), cmd.Process.Kill(), cmd.Wait())
	}
	return cmd, func() { _ = os.RemoveAll(dir) }, nil // the run's folder goes anyway
}

func (s *Standin) register(c *standinContainer, pid int, dir string) error {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "stat"), stat, 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "cgroup"), []byte("0::"+c.cgroup+"\n"), 0o600)
}

// translate turns what is true inside a container into what is true outside: paths of mounts, and the address to listen on.
func (c *standinContainer) translate(arg string) string {
	for _, m := range c.config.GetMounts() {
		if i := strings.Index(arg, m.GetContainerPath()); i >= 0 {
			return arg[:i] + m.GetHostPath() + arg[i+len(m.GetContainerPath()):]
		}
	}
	if strings.HasPrefix(arg, ":") {
		return c.ip + arg
	}
	return arg
}

func (c *standinContainer) stop() {
	c.mu.Lock()
	process := c.process
	c.mu.Unlock()
	if process == nil {
		return
	}
	_ = process.Signal(syscall.SIGTERM) // it may have ended by itself
	select {
	case <-c.ended:
	case <-time.After(2 * time.Second):
		_ = process.Kill() // as above
		<-c.ended
	}
}

// ContainerStatus answers as containerd does, verbose information included.
func (s *Standin) ContainerStatus(_ context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	c, err := s.container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	state := cri.ContainerState_CONTAINER_CREATED
	if c.process != nil {
		state = cri.ContainerState_CONTAINER_RUNNING
	}
	select {
	case <-c.ended:
		state = cri.ContainerState_CONTAINER_EXITED
	default:
	}
	answer := &cri.ContainerStatusResponse{Status: &cri.ContainerStatus{
		Id: c.id, Metadata: c.config.Metadata, Labels: c.config.Labels, Annotations: c.config.Annotations,
		State: state, StartedAt: c.started.UnixNano(), Image: c.config.Image, Mounts: c.config.Mounts,
		ImageId: c.image.config.String(), ImageRef: c.image.repository + "@" + c.image.manifest.String(),
	}}
	if r.GetVerbose() {
		info, err := c.info()
		if err != nil {
			return nil, err
		}
		answer.Info = map[string]string{"info": info}
	}
	return answer, nil
}

func (c *standinContainer) info() (string, error) {
	config, err := json.Marshal(c.config)
	if err != nil {
		return "", fmt.Errorf("node: stand-in: %w", err)
	}
	return fmt.Sprintf(`{"sandboxID": %q, "pid": %d, "config": %s, "runtimeSpec": %s}`,
		c.sandboxID, c.process.Pid, config, spec(c.cgroup)), nil
}

// spec is the part of an OCI runtime specification that an attestor reads: an unprivileged container.
func spec(cgroup string) string {
	return fmt.Sprintf(`{"process": {"capabilities": {"bounding": []}}, "linux": {"cgroupsPath": %q, "resources": {"devices": [{"allow": false}]},
		"namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}]}}`, cgroup)
}
