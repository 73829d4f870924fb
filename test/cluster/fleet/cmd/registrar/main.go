// Command registrar makes a CSI driver known to the kubelet of its node. It does what kubernetes-csi/node-driver-registrar does and
// takes the same two arguments, so that a manifest with that one in it runs here unchanged: its module cannot be had in the way that
// all other parts of a test's cluster are (package parts), and a cluster without any container engine has no use for its image.
//
// A kubelet watches its folder plugins_registry. For each socket there it asks who that is (GetInfo), calls the driver at the
// endpoint that it is told, and says whether it took it (NotifyRegistrationStatus): k8s.io/kubelet, pluginregistration/v1.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// folder is where a registrar's container has the kubelet's plugins_registry, as with the one that this stands in for.
const folder = "/registration"

func main() {
	address := flag.String("csi-address", "/run/csi/socket", "the driver's socket, as seen here")
	endpoint := flag.String("kubelet-registration-path", "", "the driver's socket, as the kubelet sees it: …/plugins/<driver>/csi.sock")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, folder, *address, *endpoint); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "registrar:", err)
		os.Exit(1)
	}
}

// run waits for the driver and answers the kubelet until ctx ends, or the kubelet refuses: then it ends, so that its container starts
// again and offers the driver anew. Kubernetes has a driver's socket in a folder of the driver's name, and so the name is taken from there.
func run(ctx context.Context, folder, address, endpoint string) error {
	if !filepath.IsAbs(endpoint) || flag.NArg() > 0 {
		return errors.New("--kubelet-registration-path has to be an absolute path, and there are no other arguments")
	}
	if err := answers(ctx, address); err != nil {
		return err
	}
	r := &registrar{driver: filepath.Base(filepath.Dir(endpoint)), endpoint: endpoint, refused: make(chan error, 1)}
	socket := filepath.Join(folder, r.driver+"-reg.sock")
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) { // of the one before, that was killed
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, r)
	defer server.Stop() // which removes the socket: the kubelet then forgets the driver
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case <-ctx.Done():
		return nil
	case err := <-r.refused:
		return err
	case err := <-served:
		return err
	}
}

// answers waits until somebody listens at the driver's socket.
func answers(ctx context.Context, address string) error {
	for {
		conn, err := net.Dial("unix", address)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the driver does not answer: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// registrar is what the kubelet asks.
type registrar struct {
	registration.UnimplementedRegistrationServer
	driver, endpoint string
	refused          chan error
}

func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: r.driver, Endpoint: r.endpoint, SupportedVersions: []string{"1.0.0"}}, nil
}

func (r *registrar) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if !s.GetPluginRegistered() {
		select {
		case r.refused <- fmt.Errorf("the kubelet does not take %s: %s", r.driver, s.GetError()):
		default: // it is ending for an earlier refusal
		}
	}
	return &registration.RegistrationStatusResponse{}, nil
}
