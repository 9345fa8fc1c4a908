"""A ROS 2 node that publishes depth as sensor_msgs/Image (32FC1, metres), and CameraInfo if the camera is known."""

from __future__ import annotations

import array

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image

import mirrordepth_edge
from mirrordepth_edge.camera.model import Camera, Lens
from mirrordepth_edge.camera.pointcloud import camera_matrix
from mirrordepth_edge.live.result import LiveResult


class DepthNode(Node):
    """Parameters: source, model, fov_deg (0.0: the training camera), frame_id."""

    def __init__(self) -> None:
        super().__init__("mirrordepth")
        source = self.declare_parameter("source", "0").value
        model = self.declare_parameter("model", "nano").value
        fov_deg = self.declare_parameter("fov_deg", 0.0).value
        self.frame_id = self.declare_parameter("frame_id", "camera_optical_frame").value
        self.lens = Lens(fov_deg=fov_deg) if fov_deg else None
        self.depth_publisher = self.create_publisher(Image, "depth", qos_profile_sensor_data)
        self.info_publisher = self.create_publisher(CameraInfo, "camera_info", qos_profile_sensor_data)
        self.frames = mirrordepth_edge.stream(source, model, camera=self.lens, reconnect=True)
        self.get_logger().info(f"{self.frames.source.name}: {model}")

    def run(self) -> None:
        """Publish until ROS shuts down or the source ends."""
        with self.frames:
            for frame in self.frames:
                if not rclpy.ok():
                    break
                self.publish(frame)
                rclpy.spin_once(self, timeout_sec=0.0)  # parameters and services

    def publish(self, frame: LiveResult) -> None:
        stamp = Time(nanoseconds=frame.captured_unix_ns).to_msg()
        height, width = frame.depth_m.shape
        depth = Image()
        depth.header.stamp, depth.header.frame_id = stamp, self.frame_id
        depth.height, depth.width = height, width
        depth.encoding, depth.is_bigendian, depth.step = "32FC1", 0, 4 * width
        # An array: rclpy checks each byte of any other sequence (ros2/rosidl_python issue 156).
        depth.data = array.array("B", frame.depth_m.astype("<f4", copy=False).tobytes())
        self.depth_publisher.publish(depth)
        if self.lens is not None:
            self.info_publisher.publish(self.camera_info(self.lens.at((height, width)), stamp))

    def camera_info(self, camera: Camera, stamp: object) -> CameraInfo:
        k = camera_matrix(camera)
        info = CameraInfo()
        info.header.stamp, info.header.frame_id = stamp, self.frame_id
        info.height, info.width = camera.height_px, camera.width_px
        info.distortion_model, info.d = "plumb_bob", [0.0] * 5
        info.k = k.ravel().tolist()
        info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        info.p = [*k[0], 0.0, *k[1], 0.0, *k[2], 0.0]
        return info


def main() -> None:
    rclpy.init()
    try:
        DepthNode().run()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        if rclpy.ok():
            rclpy.shutdown()


if __name__ == "__main__":
    main()
