package node

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/keelson-project/keelson/test/cluster"
)

// StandinOptions says what stand-in to run.
type StandinOptions struct {
	// Name is the node's name, Number its place, from 1.
	Name   string
	Number int
	// Dir holds its socket, programs and process list.
	Dir string
}

// Standin is a container runtime for machines without root. It speaks CRI as containerd does, and runs a pod's program, taken
// from the real image, as a plain child process: with no namespaces and no cgroups, but with everything that an attestor
// asks for. Since the kernel does not know these containers, ProcRoot is a folder that holds, for each of their processes, the
// two files that the kernel would: cgroup and stat.
type Standin struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer

	// ProcRoot is what the workload attestor's proc_root has to be.
	ProcRoot string

	opts   StandinOptions
	group  *cluster.Group
	server *grpc.Server

	mu         sync.Mutex
	images     map[string]*standinImage // by the reference that was pulled
	sandboxes  map[string]*standinSandbox
	containers map[string]*standinContainer
	given      byte // addresses
}

// StandinCIDR is the range of the stand-in of the node with this number, 1 to 250.
func StandinCIDR(number int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{127, 88, byte(number), 0}), 24)
}

type standinImage struct {
	config     v1.Hash
	repository string
	manifest   v1.Hash
	entrypoint []string
	root       string // its files
}

type standinSandbox struct {
	config *cri.PodSandboxConfig
	ip     string
}

// StartStandin serves a stand-in runtime and returns a client of it.
func StartStandin(g *cluster.Group, o StandinOptions) (*Runtime, *Standin, error) {
	s := &Standin{
		ProcRoot: filepath.Join(o.Dir, "proc"), opts: o, group: g, server: grpc.NewServer(),
		images: map[string]*standinImage{}, sandboxes: map[string]*standinSandbox{}, containers: map[string]*standinContainer{},
	}
	if err := os.MkdirAll(s.ProcRoot, 0o755); err != nil {
		return nil, nil, fmt.Errorf("node: stand-in: %w", err)
	}
	socket := filepath.Join(o.Dir, "cri.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, nil, fmt.Errorf("node: stand-in: %w", err)
	}
	cri.RegisterRuntimeServiceServer(s.server, s)
	cri.RegisterImageServiceServer(s.server, s)
	go func() { _ = s.server.Serve(listener) }() // ends at Close; any other end shows in the next call
	rt, err := Dial(socket)
	if err != nil {
		return nil, nil, err
	}
	rt.name = o.Name
	return rt, s, nil
}

// Close ends the runtime and every process of its containers.
func (s *Standin) Close() {
	s.server.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.containers {
		c.stop()
	}
}

// PullImage fetches the image and unpacks its files.
func (s *Standin) PullImage(ctx context.Context, r *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	reference := r.GetImage().GetImage()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.images[reference] == nil {
		image, err := pull(ctx, reference, filepath.Join(s.opts.Dir, "images"))
		if err != nil {
			return nil, err
		}
		s.images[reference] = image
	}
	return &cri.PullImageResponse{ImageRef: s.images[reference].config.String()}, nil
}

func pull(ctx context.Context, reference, dir string) (*standinImage, error) {
	ref, err := name.ParseReference(reference, name.Insecure)
	if err != nil {
		return nil, fmt.Errorf("node: stand-in: %w", err)
	}
	img, err := remote.Image(ref, remote.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("node: stand-in: pull: %w", err)
	}
	manifest, err1 := img.Digest()
	config, err2 := img.ConfigName()
	file, err3 := img.ConfigFile()
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("node: stand-in: %s: %w", reference, err)
	}
	root := filepath.Join(dir, config.Hex)
	if err := unpack(img, root); err != nil {
		return nil, err
	}
	return &standinImage{
		config: config, manifest: manifest, repository: ref.Context().Name(), entrypoint: file.Config.Entrypoint, root: root,
	}, nil
}

// unpack writes the image's regular files below root; names that lead out of it are refused by os.Root.
func unpack(img v1.Image, dir string) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("node: stand-in: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("node: stand-in: %w", err)
	}
	content := mutate.Extract(img)
	defer func() { err = errors.Join(err, root.Close(), content.Close()) }()
	files := tar.NewReader(content)
	for {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("node: stand-in: %w", err)
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		f, err := root.OpenFile(header.Name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
		if err != nil {
			return fmt.Errorf("node: stand-in: %w", err)
		}
		_, err = io.Copy(f, files) // #nosec G110 -- the image is one that this run has made
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("node: stand-in: %w", err)
		}
	}
}

// ImageStatus tells what is known of a pulled image.
func (s *Standin) ImageStatus(_ context.Context, r *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for reference, i := range s.images {
		if want := r.GetImage().GetImage(); want == reference || want == i.config.String() {
			return &cri.ImageStatusResponse{Image: &cri.Image{
				Id: i.config.String(), RepoDigests: []string{i.repository + "@" + i.manifest.String()},
			}}, nil
		}
	}
	return &cri.ImageStatusResponse{}, nil
}

// Status says that the runtime is ready.
func (s *Standin) Status(context.Context, *cri.StatusRequest) (*cri.StatusResponse, error) {
	return &cri.StatusResponse{Status: &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{
		{Type: cri.RuntimeReady, Status: true}, {Type: cri.NetworkReady, Status: true},
	}}}, nil
}

// RunPodSandbox gives the pod an address of its own in 127.0.0.0/8.
func (s *Standin) RunPodSandbox(_ context.Context, r *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, err := newID()
	if err != nil {
		return nil, err
	}
	cidr := StandinCIDR(s.opts.Number).Addr().As4()
	s.given++
	ip := netip.AddrFrom4([4]byte{cidr[0], cidr[1], cidr[2], s.given + 9}) // byte: a demo has no 240 pods on a node
	s.sandboxes[id] = &standinSandbox{config: r.GetConfig(), ip: ip.String()}
	return &cri.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// PodSandboxStatus answers as containerd does, verbose information included.
func (s *Standin) PodSandboxStatus(_ context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sandbox := s.sandboxes[r.GetPodSandboxId()]
	if sandbox == nil {
		return nil, status.Errorf(codes.NotFound, "pod sandbox %q is unknown", r.GetPodSandboxId())
	}
	c := sandbox.config
	answer := &cri.PodSandboxStatusResponse{Status: &cri.PodSandboxStatus{
		Id: r.GetPodSandboxId(), Metadata: c.Metadata, Labels: c.Labels, Annotations: c.Annotations,
		State: cri.PodSandboxState_SANDBOX_READY, Network: &cri.PodSandboxNetworkStatus{Ip: sandbox.ip},
		Linux: &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: c.GetLinux().GetSecurityContext().GetNamespaceOptions()}},
	}}
	if r.GetVerbose() {
		answer.Info = map[string]string{"info": `{"runtimeSpec": ` + spec(c.GetLinux().GetCgroupParent()+"/"+r.GetPodSandboxId()) + `}`}
	}
	return answer, nil
}

// StopPodSandbox ends the pod's processes.
func (s *Standin) StopPodSandbox(_ context.Context, r *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, c := range s.containers {
		if c.sandboxID == r.GetPodSandboxId() {
			c.stop()
			delete(s.containers, id)
		}
	}
	return &cri.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox forgets the pod.
func (s *Standin) RemovePodSandbox(_ context.Context, r *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sandboxes, r.GetPodSandboxId())
	return &cri.RemovePodSandboxResponse{}, nil
}

// newID makes an ID of the form that runtimes give: 64 hex digits.
func newID() (string, error) {
	var id [32]byte
	if _, err := rand.Read(id[:]); err != nil {
		return "", fmt.Errorf("node: stand-in: %w", err)
	}
	return hex.EncodeToString(id[:]), nil
}
