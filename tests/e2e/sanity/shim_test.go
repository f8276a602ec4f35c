package sanity

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	podUID     = "0d4b5c3e-6f1a-4c7b-9d2e-8a1f00c51a17"
	volumeName = "secrets"
)

// pod is the pod whose volume csi-sanity mounts, and the controller that says so.
type pod struct {
	csi.UnimplementedControllerServer
	csi.UnimplementedIdentityServer
	volumeDir string
	spec      string
}

func newPod(kubeletDir, spec string) *pod {
	dir := filepath.Join(kubeletDir, "pods", podUID, "volumes", "kubernetes.io~csi", volumeName)
	return &pod{volumeDir: dir, spec: spec}
}

// serve answers as a controller, until the test ends.
func (p *pod) serve(t *testing.T) string {
	socket := filepath.Join(t.TempDir(), "c.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	csi.RegisterControllerServer(server, p)
	csi.RegisterIdentityServer(server, p)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return socket
}

// The volume as the kubelet names and describes it (kubernetes pkg/volume/csi: makeVolumeHandle, getPodInfoAttrs).
func (p *pod) CreateVolume(_ context.Context, request *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if request.GetName() == "" {
		return nil, status.Error(codes.InvalidArgument, "no name")
	}
	id := fmt.Sprintf("csi-%x", sha256.Sum256([]byte(podUID+volumeName)))
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{VolumeId: id, VolumeContext: map[string]string{
		"spec":                                   p.spec,
		"csi.storage.k8s.io/ephemeral":           "true",
		"csi.storage.k8s.io/pod.name":            "sanity",
		"csi.storage.k8s.io/pod.namespace":       "default",
		"csi.storage.k8s.io/pod.uid":             podUID,
		"csi.storage.k8s.io/serviceAccount.name": "default",
	}}}, nil
}

func (p *pod) DeleteVolume(context.Context, *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	return &csi.DeleteVolumeResponse{}, nil
}

func (p *pod) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	create := &csi.ControllerServiceCapability_RPC{Type: csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME}
	return &csi.ControllerGetCapabilitiesResponse{Capabilities: []*csi.ControllerServiceCapability{
		{Type: &csi.ControllerServiceCapability_Rpc{Rpc: create}},
	}}, nil
}

func (p *pod) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: "shim.secretfs.dev", VendorVersion: "0"}, nil
}

func (p *pod) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{controllerService}}, nil
}

func (p *pod) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

var controllerService = &csi.PluginCapability{Type: &csi.PluginCapability_Service_{
	Service: &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE},
}}

// asKubelet lies between csi-sanity and the plugin:
//
//  1. A publish that is otherwise complete is read-only, as the pod's author has to write.
//  2. The plugin's capabilities get the controller of this file, or csi-sanity would not publish at all.
func (p *pod) asKubelet(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	if publish, is := request.(*csi.NodePublishVolumeRequest); is && publish.GetVolumeContext() != nil {
		publish.Readonly = true // 1
	}
	err := invoke(ctx, method, request, reply, conn, options...)
	if capabilities, is := reply.(*csi.GetPluginCapabilitiesResponse); is && err == nil {
		capabilities.Capabilities = append(capabilities.Capabilities, controllerService) // 2
	}
	return err
}

func pathKind(path string) (sanity.PathKind, error) {
	found, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return sanity.PathIsNotFound, nil
	case err != nil:
		return "", err
	case found.IsDir():
		return sanity.PathIsDir, nil
	default:
		return sanity.PathIsFile, nil
	}
}
