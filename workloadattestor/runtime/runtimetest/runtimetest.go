// Package runtimetest is a container runtime that runs nothing: it answers CRI's questions about containers that the
// test describes, the way containerd does. It stands in where no real runtime can run.
package runtimetest

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod describes a pod with one container. Pods of the same sandbox are one pod with several.
type Pod struct {
	Namespace, Name, UID string
	Container            string
	ContainerID          string // 64 hex digits
	SandboxID            string
	ImageID              string
	ImageRef             string
	Image                string
	CgroupsPath          string
	Privileged           bool
	HostPID              bool
	HostNetwork          bool
	HostIPC              bool
	Capabilities         []string // beyond the default
	Snapshotter          string
	HostPaths            []string // mounted besides the pod's own, read-only but for those with "rw " in front
	// Hardened gives the container what Pod Security level "restricted" asks for.
	Hardened bool
	Handler  string // runtime handler
}

// Server is the runtime.
type Server struct {
	criv1.UnimplementedRuntimeServiceServer
	criv1.UnimplementedImageServiceServer

	mu         sync.Mutex
	containers map[string]*criv1.ContainerStatusResponse
	sandboxes  map[string]*criv1.PodSandboxStatusResponse
	sandboxOf  map[string]string // of a container
	images     map[string]*criv1.Image
	failure    error
	slow       map[string]time.Duration
	asked      []string

	extraSandboxes  []*criv1.PodSandbox
	extraContainers []*criv1.Container
}

// Serve listens at a Unix socket until stop is called.
func Serve(socket string) (s *Server, stop func(), err error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, nil, fmt.Errorf("runtimetest: %w", err)
	}
	s = &Server{
		containers: map[string]*criv1.ContainerStatusResponse{},
		sandboxes:  map[string]*criv1.PodSandboxStatusResponse{},
		sandboxOf:  map[string]string{},
		images:     map[string]*criv1.Image{},
	}
	g := grpc.NewServer()
	criv1.RegisterRuntimeServiceServer(g, s)
	criv1.RegisterImageServiceServer(g, s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.Serve(l) // returns when stopped
	}()
	return s, func() {
		g.Stop()
		<-done
		_ = os.Remove(socket) // the listener removed it already, normally
	}, nil
}

// Add adds a running pod.
func (s *Server) Add(p Pod) error {
	container, sandbox, err := p.Answers()
	if err != nil {
		return err
	}
	s.Put(container, sandbox)
	return nil
}

// Put adds answers of any content.
func (s *Server) Put(container *criv1.ContainerStatusResponse, sandbox *criv1.PodSandboxStatusResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.containers[container.GetStatus().GetId()] = container
	s.sandboxOf[container.GetStatus().GetId()] = sandbox.GetStatus().GetId()
	s.sandboxes[sandbox.GetStatus().GetId()] = sandbox
}

// PutImage adds what ImageStatus answers for an image ID.
func (s *Server) PutImage(image *criv1.Image) { s.PutImageAs(image.GetId(), image) }

// PutImageAs adds what ImageStatus answers for any name of an image.
func (s *Server) PutImageAs(name string, image *criv1.Image) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images[name] = image
}

// Fail makes every call fail; nil ends that.
func (s *Server) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failure = err
}

// Slow delays the answers to one kind of call, by its name in CRI.
func (s *Server) Slow(call string, by time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.slow == nil {
		s.slow = map[string]time.Duration{}
	}
	s.slow[call] = by
}

// wait notes a call, and waits as long as Slow says.
func (s *Server) wait(ctx context.Context, call string) {
	s.mu.Lock()
	s.asked = append(s.asked, call)
	d := s.slow[call]
	s.mu.Unlock()
	if d > 0 {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
}

// Asked lists the calls so far.
func (s *Server) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.asked...)
}

// ContainerStatus finds containers by any prefix of their ID, as containerd does.
func (s *Server) ContainerStatus(ctx context.Context, req *criv1.ContainerStatusRequest) (*criv1.ContainerStatusResponse, error) {
	s.wait(ctx, "ContainerStatus")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure != nil {
		return nil, s.failure
	}
	for id, c := range s.containers {
		if strings.HasPrefix(id, req.GetContainerId()) {
			return c, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "an error occurred when try to find container %q: not found", req.GetContainerId())
}

// PodSandboxStatus answers about a sandbox.
func (s *Server) PodSandboxStatus(ctx context.Context, req *criv1.PodSandboxStatusRequest) (*criv1.PodSandboxStatusResponse, error) {
	s.wait(ctx, "PodSandboxStatus")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure != nil {
		return nil, s.failure
	}
	if p, ok := s.sandboxes[req.GetPodSandboxId()]; ok {
		return p, nil
	}
	return nil, status.Errorf(codes.NotFound, "an error occurred when try to find sandbox: not found")
}

// ListPodSandbox answers as containerd does: filtered by state and labels.
func (s *Server) ListPodSandbox(ctx context.Context, req *criv1.ListPodSandboxRequest) (*criv1.ListPodSandboxResponse, error) {
	s.wait(ctx, "ListPodSandbox")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure != nil {
		return nil, s.failure
	}
	out := &criv1.ListPodSandboxResponse{}
	for _, answer := range s.sandboxes {
		p := answer.GetStatus()
		fits := req.GetFilter().GetState() == nil || req.GetFilter().GetState().GetState() == p.GetState()
		for k, v := range req.GetFilter().GetLabelSelector() {
			fits = fits && p.GetLabels()[k] == v
		}
		if fits {
			out.Items = append(out.Items, &criv1.PodSandbox{Id: p.GetId(), Metadata: p.GetMetadata(), State: p.GetState(), Labels: p.GetLabels(), RuntimeHandler: p.GetRuntimeHandler()})
		}
	}
	out.Items = append(out.Items, s.extraSandboxes...)
	return out, nil
}

// ListContainers answers as containerd does: filtered by sandbox.
func (s *Server) ListContainers(ctx context.Context, req *criv1.ListContainersRequest) (*criv1.ListContainersResponse, error) {
	s.wait(ctx, "ListContainers")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure != nil {
		return nil, s.failure
	}
	out := &criv1.ListContainersResponse{}
	for id, answer := range s.containers {
		if c := answer.GetStatus(); s.sandboxOf[id] == req.GetFilter().GetPodSandboxId() {
			out.Containers = append(out.Containers, &criv1.Container{Id: id, PodSandboxId: s.sandboxOf[id], Metadata: c.GetMetadata(), Image: c.GetImage(),
				ImageRef: c.GetImageRef(), State: c.GetState(), Labels: c.GetLabels()})
		}
	}
	out.Containers = append(out.Containers, s.extraContainers...)
	return out, nil
}

// List adds to what every list has, whatever its filter.
func (s *Server) List(sandboxes []*criv1.PodSandbox, containers []*criv1.Container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.extraSandboxes, s.extraContainers = sandboxes, containers
}

// Remove takes a container away.
func (s *Server) Remove(container string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, container)
}

// ImageStatus answers about an image; none is no error in CRI.
func (s *Server) ImageStatus(ctx context.Context, req *criv1.ImageStatusRequest) (*criv1.ImageStatusResponse, error) {
	s.wait(ctx, "ImageStatus")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure != nil {
		return nil, s.failure
	}
	return &criv1.ImageStatusResponse{Image: s.images[req.GetImage().GetImage()]}, nil
}

// defaultCapabilities is what containerd gives an unprivileged container.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// Answers makes what containerd would answer about the pod.
func (p Pod) Answers() (*criv1.ContainerStatusResponse, *criv1.PodSandboxStatusResponse, error) {
	containerInfo, err1 := json.Marshal(p.ContainerInfo())
	sandboxInfo, err2 := json.Marshal(p.SandboxInfo())
	for _, err := range []error{err1, err2} {
		if err != nil {
			return nil, nil, fmt.Errorf("runtimetest: %w", err)
		}
	}
	labels := map[string]string{
		"io.kubernetes.pod.namespace": p.Namespace, "io.kubernetes.pod.name": p.Name, "io.kubernetes.pod.uid": p.UID,
	}
	containerLabels := map[string]string{"io.kubernetes.container.name": p.Container}
	for k, v := range labels {
		containerLabels[k] = v
	}
	// The kubelet always mounts the file for the container's last words.
	mounts := []*criv1.Mount{{HostPath: "/var/lib/kubelet/pods/" + p.UID + "/containers/" + p.Container + "/0a1b2c3d", ContainerPath: "/dev/termination-log"}}
	for _, path := range p.HostPaths {
		path, writable := strings.CutPrefix(path, "rw ")
		mounts = append(mounts, &criv1.Mount{HostPath: path, ContainerPath: path, Readonly: !writable})
	}
	container := &criv1.ContainerStatusResponse{
		Status: &criv1.ContainerStatus{
			Id: p.ContainerID, Metadata: &criv1.ContainerMetadata{Name: p.Container}, State: criv1.ContainerState_CONTAINER_RUNNING,
			Image: &criv1.ImageSpec{Image: p.Image}, ImageRef: p.ImageRef, ImageId: p.ImageID, Labels: containerLabels, Mounts: mounts,
		},
		Info: map[string]string{"info": string(containerInfo)},
	}
	sandbox := &criv1.PodSandboxStatusResponse{
		Status: &criv1.PodSandboxStatus{
			Id: p.SandboxID, Metadata: &criv1.PodSandboxMetadata{Name: p.Name, Namespace: p.Namespace, Uid: p.UID},
			State: criv1.PodSandboxState_SANDBOX_READY, Labels: labels, RuntimeHandler: p.Handler,
			Linux: &criv1.LinuxPodSandboxStatus{Namespaces: &criv1.Namespace{Options: &criv1.NamespaceOption{
				Network: node(p.HostNetwork, criv1.NamespaceMode_POD),
				Pid:     node(p.HostPID, criv1.NamespaceMode_CONTAINER),
				Ipc:     node(p.HostIPC, criv1.NamespaceMode_POD),
			}}},
		},
		Info: map[string]string{"info": string(sandboxInfo)},
	}
	return container, sandbox, nil
}

func node(host bool, otherwise criv1.NamespaceMode) criv1.NamespaceMode {
	if host {
		return criv1.NamespaceMode_NODE
	}
	return otherwise
}

// ContainerInfo is the verbose information about the container, before it is marshalled.
func (p Pod) ContainerInfo() map[string]any {
	namespaces := []map[string]string{
		{"type": "ipc", "path": "/proc/1000/ns/ipc"}, {"type": "uts", "path": "/proc/1000/ns/uts"},
		{"type": "mount"}, {"type": "network", "path": "/proc/1000/ns/net"},
	}
	pid := map[string]string{"type": "pid"}
	if p.HostPID {
		pid["path"] = "/proc/1000/ns/pid" // the sandbox's, which is the host's
	}
	namespaces = append(namespaces, pid)
	capabilities := append(append([]string(nil), defaultCapabilities...), p.Capabilities...)
	process := map[string]any{"user": map[string]any{"uid": 0, "gid": 0}}
	linux := map[string]any{
		"maskedPaths": []string{"/proc/acpi", "/proc/kcore", "/proc/keys"}, "readonlyPaths": []string{"/proc/bus", "/proc/sys"},
	}
	security := map[string]any{"namespace_options": map[string]any{
		"network": node(p.HostNetwork, criv1.NamespaceMode_POD),
		"pid":     node(p.HostPID, criv1.NamespaceMode_CONTAINER),
		"ipc":     node(p.HostIPC, criv1.NamespaceMode_POD),
	}}
	devices := []map[string]any{{"allow": false, "access": "rwm"}}
	if p.Privileged {
		security["privileged"] = true
		devices = []map[string]any{{"allow": true, "access": "rwm"}}
		capabilities = append(capabilities, "CAP_SYS_ADMIN")
	}
	if p.Hardened {
		capabilities = append([]string{}, p.Capabilities...)
		process["user"], process["noNewPrivileges"] = map[string]any{"uid": 65532, "gid": 65532}, true
		security["seccomp"] = map[string]any{}
		linux["seccomp"] = map[string]any{"defaultAction": "SCMP_ACT_ERRNO"}
	}
	process["capabilities"] = map[string]any{"bounding": capabilities, "effective": capabilities, "permitted": capabilities}
	linux["cgroupsPath"], linux["namespaces"], linux["resources"] = p.CgroupsPath, namespaces, map[string]any{"devices": devices}
	return map[string]any{
		"sandboxID": p.SandboxID, "snapshotter": p.Snapshotter, "runtimeType": "io.containerd.runc.v2",
		"config":      map[string]any{"linux": map[string]any{"security_context": security}},
		"runtimeSpec": map[string]any{"process": process, "linux": linux, "root": map[string]any{"path": "rootfs", "readonly": p.Hardened}},
	}
}

// SandboxInfo is the verbose information about the sandbox, before it is marshalled.
func (p Pod) SandboxInfo() map[string]any {
	namespaces := []map[string]string{{"type": "uts"}, {"type": "mount"}}
	for kind, host := range map[string]bool{"pid": p.HostPID, "network": p.HostNetwork, "ipc": p.HostIPC} {
		if !host {
			namespaces = append(namespaces, map[string]string{"type": kind})
		}
	}
	return map[string]any{"runtimeSpec": map[string]any{"linux": map[string]any{"namespaces": namespaces}}}
}
